"""Pure functions on boxes and points that know no network."""
