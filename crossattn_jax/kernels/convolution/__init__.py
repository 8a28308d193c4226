"""Convolutions of maps with channels last, and of sentences."""
