"""Object detection: boxes with classes and scores, and masks of the objects in them."""
