"""Heads that find objects."""
