import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.geometry import encoding
from crossattn_jax.heads.detection import rpn

# Of the second image, anchors lie beyond it.
SIZES = np.array([[32, 48], [18, 25]])


def test_proposals_are_those_of_the_definition_and_have_no_gradient(grid, greedy):
  rng = np.random.RandomState(0)
  objectness = rng.standard_normal((2, sum(grid.counts))).astype(np.float32)
  candidates = rng.uniform(size=objectness.shape) < 0.7
  deltas = 0.4 * rng.standard_normal((2, sum(grid.counts), 4)).astype(np.float32)

  @jax.jit
  def propose(objectness, deltas):
    outputs = {'objectness': objectness, 'anchor_deltas': deltas}
    options = {'max_per_level': 30, 'max_boxes': 25, 'iou_threshold': 0.5, 'min_size': 4.0}
    options['is_candidate'] = candidates
    decoded = encoding.decode(grid.corners(), deltas, image_size=SIZES[:, None])
    total = lambda outputs: sum(x.sum() for x in rpn.propose(outputs, grid, SIZES, **options))
    return rpn.propose(outputs, grid, SIZES, **options), decoded, jax.grad(total)(outputs)

  (boxes, scores), decoded, gradient = jax.device_get(propose(objectness, deltas))
  for i in range(2):
    proposals = []
    for level, rows in enumerate(grid.levels):
      seen = rows.start + np.flatnonzero(candidates[i, rows])
      best = sorted(seen, key=lambda a: -objectness[i, a])[:30]
      large = [a for a in best if (decoded[i, a, 2:] - decoded[i, a, :2] > 4).all()]
      proposals += [(objectness[i, a], level, decoded[i, a]) for a in large]
    expected = greedy(proposals, 0.5)[:25]
    n = len(expected)
    assert n > 5
    kept = np.array([box for _, _, box in expected])
    np.testing.assert_allclose(boxes[i, :n], kept, rtol=1e-5, atol=1e-4)
    probabilities = 1 / (1 + np.exp([-x for x, _, _ in expected]))
    np.testing.assert_allclose(scores[i, :n], probabilities, rtol=1e-6)
    assert not boxes[i, n:].any()
    assert (scores[i, n:] == -1).all()
  assert (scores == -1).any()
  assert not any(x.any() for x in jax.tree.leaves(gradient))


def test_the_head_judges_every_anchor(grid):
  maps = [jnp.ones((1, *size, 8), jnp.bfloat16) for size in grid.map_sizes]
  head = rpn.RegionProposalHead(2, channels=4, dtype=jnp.bfloat16)
  found = jax.eval_shape(lambda: head.init_with_output(jax.random.key(0), maps)[0])
  assert found['objectness'].shape == (1, sum(grid.counts))
  assert found['anchor_deltas'].shape == (1, sum(grid.counts), 4)
  assert found['anchor_deltas'].dtype == jnp.float32
