"""Parts of the sketch localizer; its numbers are the recorded cases'."""

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.heads.detection import deformable_decoder
from crossattn_jax.models.sketch_localizer import backbone, refinement


def test_tokens_are_a_map_and_detection_tokens():
  tokens = jnp.arange(2 * 8 * 3.0).reshape(2, 8, 3)
  patches, det = backbone.split(tokens, (2, 3))
  np.testing.assert_array_equal(patches[1, 1, 2], tokens[1, 5])
  np.testing.assert_array_equal(det, tokens[:, 6:])
  np.testing.assert_array_equal(backbone.join(patches, det), tokens)


def test_bfloat16_scores_and_boxes_are_float32():
  half = jnp.bfloat16
  decoded = deformable_decoder.Decoded(
    jnp.zeros((2, 1, 3, 8), half), jnp.zeros((1, 3, 2)), jnp.zeros((2, 1, 3, 4))
  )
  head = refinement.RefinementHead(num_heads=2, hidden=8, dtype=half)

  def run(key):
    boxes = [lambda x: jnp.zeros((*x.shape[:-1], 4), half)] * 2
    sketches = jnp.zeros((1, 1, 2, 2, 8), half)
    return head.init_with_output(key, decoded, jnp.zeros((1, 3, 8), half), sketches, boxes)[0]

  assert [x.dtype for x in jax.eval_shape(run, jax.random.key(0))] == [jnp.float32] * 2
