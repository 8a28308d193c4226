"""Attention mechanisms: a pure function on arrays, then the Linen module with the parameters."""
