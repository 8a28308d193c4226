"""Attention whose scores get a bias that all examples share."""
