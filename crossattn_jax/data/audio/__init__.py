"""Clips of sound, as spectrograms."""
