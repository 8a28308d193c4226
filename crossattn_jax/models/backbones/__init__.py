"""Backbones that belong to no system."""
