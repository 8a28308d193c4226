"""Attention by scaled dot products: of all queries to all keys."""
