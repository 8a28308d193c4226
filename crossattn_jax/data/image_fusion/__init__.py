"""Pairs of infrared and visible images."""
