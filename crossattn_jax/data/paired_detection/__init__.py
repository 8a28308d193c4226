"""Detection in aligned pairs of images, RGB and thermal, whose objects are those of both."""
