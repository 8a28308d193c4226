"""Finding in a photo what a sketch shows."""
