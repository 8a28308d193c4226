"""Attention within the groups that a map is cut into."""
