"""What several models share and Flax lacks."""
