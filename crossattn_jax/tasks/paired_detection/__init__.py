"""Object detection in aligned RGB and thermal images."""
