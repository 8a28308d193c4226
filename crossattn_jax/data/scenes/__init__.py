"""Data that is generated: no network, no download."""
