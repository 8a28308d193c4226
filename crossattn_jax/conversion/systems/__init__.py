"""A file per system: how its parameters, inputs and outputs correspond to the originals'."""
