"""Maps of a photo say where it looks at the lines of a sketch."""

import jax.numpy as jnp
import numpy as np

from crossattn_jax.models.sketch_localizer import attention_maps


def features(weights, size):
  return {'attention_0': weights, 'stage_0': jnp.zeros((len(weights), *size, 8))}


def test_places_that_look_at_lines_stand_out():
  # A bar in the left half of a sketch with 2 x 2 cells, and a photo of 1 x 3 places: one looks at
  # the left, one at the right, one at all alike.
  sketch = np.full((1, 1, 64, 64, 3), -1.5)
  sketch[:, :, 8:56, 12:20] = 2.0
  weights = jnp.array([[[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5], [0.25, 0.25, 0.25, 0.25]]])
  for values in (sketch, -sketch):
    (looks,) = attention_maps.of_lines(features(weights, (1, 3)), jnp.array(values)).values()
    np.testing.assert_allclose(looks, [[[2, 0, 1]]], atol=0.1)
    np.testing.assert_allclose(looks[0, 0, 2], 1, atol=1e-6)


def test_an_empty_sketch_has_no_lines():
  weights = jnp.array([[[0.7, 0.1, 0.1, 0.1]]])
  maps = attention_maps.of_lines(features(weights, (1, 1)), jnp.ones((1, 2, 64, 64, 3)))
  np.testing.assert_allclose(maps['stage_0'], [[[1]]], atol=1e-6)
