"""Semantic segmentation of point clouds: a class for every point."""
