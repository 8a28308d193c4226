"""Parts of the sketch localizer; its numbers are the recorded cases'."""

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

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


def boxes_of(levels):
  return [lambda x: x[..., :4]] * levels


def run_stage(stage, tokens, padding):
  return stage(tokens, (3, 4), jnp.zeros((1, 3, 8)), padding)[:2]


def run_decoder(decoder, queries, image, padding):
  return decoder(queries, jnp.zeros((1, 3, 8)), [image], [padding], boxes_of(2))


def run_head(head, state, point, box, sketches):
  decoded = deformable_decoder.Decoded(jnp.stack([state] * 2), point, jnp.stack([box] * 2))
  return head(decoded, jnp.zeros((1, 3, 8)), sketches, boxes_of(2))


STAGE = backbone.Stage(2, (0.0, 0.0), 16, 2)
DECODER = deformable_decoder.DeformableDecoder(1, 2, 2, 8)
HEAD = refinement.RefinementHead(num_heads=2, hidden=8, first_level=1)


@pytest.mark.parametrize(
  ('module', 'run', 'shapes', 'padding'),
  [
    (STAGE, run_stage, [(15, 8)], [(3, 4)]),
    (DECODER, run_decoder, [(3, 8), (2, 3, 8)], [(2, 3)]),
    (HEAD, run_head, [(3, 8), (3, 2), (3, 4), (2, 2, 2, 8)], []),
  ],
  ids=['stage', 'decoder', 'head'],
)
def test_parts_are_exported_for_any_batch(module, run, shapes, padding):
  def arrays(batch):
    return [
      jax.ShapeDtypeStruct((batch, *shape), dtype)
      for all_of, dtype in ((shapes, jnp.float32), (padding, bool))
      for shape in all_of
    ]

  init = lambda *x: module.init(jax.random.key(0), *x, method=run)
  apply = jax.jit(lambda variables, *x: module.apply(variables, *x, method=run))
  (batch,) = export.symbolic_shape('batch')
  program = export.export(apply)(jax.eval_shape(init, *arrays(1)), *arrays(batch))
  assert all(batch in x.shape for x in jax.tree.leaves(program.out_avals))


@pytest.mark.extended
def test_a_stage_that_loops_and_recomputes_has_the_same_gradients():
  """Of its parameters, and of all arrays that the blocks share."""
  stage = backbone.Stage(2, (0.0,) * 4, 8, 2)
  arrays = tokens, position = (
    jnp.sin(jnp.arange(2 * 15 * 8.0)).reshape(2, 15, 8),
    jnp.ones((1, 3, 8)),
  )
  padding = jnp.zeros((2, 3, 4), bool).at[1, :, 3].set(True)
  variables = jax.jit(stage.init, static_argnums=2)(
    jax.random.key(0), tokens, (3, 4), position, padding
  )

  def gradient(stage):
    def loss(variables, tokens, position):
      whole, merged, _ = stage.apply(variables, tokens, (3, 4), position, padding)
      return jnp.sum(whole**2) + jnp.sum(merged)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(variables, *arrays)

  called, looped = gradient(stage), gradient(stage.clone(scan_blocks=True, remat=True))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), called, looped)
