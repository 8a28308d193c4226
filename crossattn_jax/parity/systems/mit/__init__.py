"""MIT and its original."""
