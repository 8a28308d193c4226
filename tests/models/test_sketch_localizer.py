"""Parts of the sketch localizer; its numbers are the recorded cases'."""

import jax.numpy as jnp
import numpy as np

from crossattn_jax.models.sketch_localizer import backbone


def test_tokens_are_a_map_and_detection_tokens():
  tokens = jnp.arange(2 * 8 * 3.0).reshape(2, 8, 3)
  patches, det = backbone.split(tokens, (2, 3))
  np.testing.assert_array_equal(patches[1, 1, 2], tokens[1, 5])
  np.testing.assert_array_equal(det, tokens[:, 6:])
  np.testing.assert_array_equal(backbone.join(patches, det), tokens)
