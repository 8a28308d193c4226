"""Heads that label every pixel."""
