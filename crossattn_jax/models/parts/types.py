"""Types that models share."""

import jax

# What a model shows besides its result, by documented names.
Features = dict[str, jax.Array]

# (height, width) of a map.
Grid = tuple[int, int]
