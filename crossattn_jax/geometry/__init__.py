"""Pure functions on boxes that know no network."""
