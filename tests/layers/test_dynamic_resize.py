"""One program resizes examples of all sizes as `layers.resize` does each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.layers import dynamic_resize, resize


@pytest.mark.parametrize('align_corners', [False, True])
def test_classes_are_those_of_a_resize_of_each_example_alone(align_corners):
  sizes_in = [(7, 9), (5, 4), (1, 1), (7, 3)]
  sizes_out = [(20, 31), (11, 3), (2, 2), (1, 30)]
  rng = np.random.default_rng(0)
  scores = rng.standard_normal((4, 7, 9, 6))
  with jax.enable_x64(True):
    classes = jax.jit(
      lambda *arguments: dynamic_resize.resized_classes(
        *arguments, (21, 31), align_corners=align_corners, rows_at_once=8
      )
    )(scores, jnp.asarray(sizes_in), jnp.asarray(sizes_out))
    assert classes.shape == (4, 21, 31)
    for row, (size_in, size_out) in enumerate(zip(sizes_in, sizes_out, strict=True)):
      alone = resize.resize(
        jnp.asarray(scores[row, : size_in[0], : size_in[1]]), size_out, 'bilinear', align_corners
      )
      np.testing.assert_array_equal(
        classes[row, : size_out[0], : size_out[1]], jnp.argmax(alone, axis=-1)
      )
