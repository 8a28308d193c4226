import functools

import jax
import numpy as np

from crossattn_jax.geometry import encoding
from crossattn_jax.heads.detection import decoding


def test_retinanet_finds_what_its_definition_finds(grid, greedy):
  rng = np.random.RandomState(0)
  count = sum(grid.counts)
  logits = rng.standard_normal((3, count, 3)).astype(np.float32)
  logits[2] = -9  # Where nothing is sure enough, nothing is found.
  deltas = 0.3 * rng.standard_normal((3, count, 4)).astype(np.float32)
  sizes = np.array([[32, 48], [20, 31], [32, 48]])

  @jax.jit
  def decode(logits, deltas):
    outputs = {'logits': logits, 'deltas': deltas}
    options = {'score_threshold': 0.6, 'iou_threshold': 0.4, 'max_boxes': 12, 'max_per_level': 20}
    found = decoding.decode_retinanet(outputs, grid, sizes, **options)
    return found, encoding.decode(grid.corners(), deltas, image_size=sizes[:, None])

  found, boxes = jax.device_get(decode(logits, deltas))
  scores = 1 / (1 + np.exp(-logits))
  for i in range(3):
    candidates = []
    for rows, stride, (_, width) in zip(grid.levels, (8, 16), grid.map_sizes, strict=True):
      # The second image is 32 pixels wide and high after padding, in an input of 32 x 48.
      columns = 32 // stride if i == 1 else width
      seen = [a for a in range(rows.start, rows.stop) if (a - rows.start) // 2 % width < columns]
      pairs = [(a, c) for a in seen for c in range(3) if scores[i, a, c] > 0.6]
      pairs = sorted(pairs, key=lambda pair: -scores[i][pair])[:20]
      candidates += [(scores[i, a, c], c, boxes[i, a]) for a, c in pairs]
    expected = greedy(candidates, 0.4)[:12]
    n = len(expected)
    assert n == 0 if i == 2 else n > 5
    for score, label, box, (kept_score, kept_label, kept_box) in zip(
      found.scores[i], found.labels[i], found.boxes[i], expected, strict=False
    ):
      assert label == kept_label
      np.testing.assert_allclose(score, kept_score, rtol=1e-6)
      np.testing.assert_allclose(box, kept_box, rtol=1e-5, atol=1e-4)
    assert (found.labels[i, n:] == -1).all()
    assert not found.boxes[i, n:].any()
    assert not found.scores[i, n:].any()


def test_the_best_pairs_are_those_of_a_full_sort_ties_included():
  scores = np.random.RandomState(1).randint(0, 6, (2, 40, 5)).astype(np.float32)
  best, rows, classes = jax.jit(jax.vmap(functools.partial(decoding.best_pairs, count=30)))(scores)
  for i in range(2):
    order = np.argsort(-scores[i].ravel(), kind='stable')[:30]
    np.testing.assert_array_equal(best[i], scores[i].ravel()[order])
    np.testing.assert_array_equal(rows[i], order // 5)
    np.testing.assert_array_equal(classes[i], order % 5)
  shapes = jax.eval_shape(lambda x: decoding.best_pairs(x, 1000), scores[0])
  assert shapes[0].shape == (200,)
