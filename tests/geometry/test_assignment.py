import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from crossattn_jax.geometry import anchors, assignment, boxes
from crossattn_jax.geometry.assignment import BACKGROUND, IGNORED

SETTINGS = {
  'retinanet': {'positive': 0.5, 'negative': 0.4},
  'rpn': {'positive': 0.7, 'negative': 0.3, 'min_positive': 0.3},
  'rcnn': {'positive': 0.5, 'negative': 0.5, 'min_positive': 0.5, 'low_quality': False},
  'one best': {'positive': 0.7, 'negative': 0.3, 'min_positive': 0.3, 'all_best': False},
}


def plain(overlaps, positive, negative, min_positive=0.0, low_quality=True, all_best=True):
  """Box by box and object by object, as mmdetection's MaxIoUAssigner."""
  truths, count = overlaps.shape
  if not truths:
    return np.full(count, BACKGROUND)
  assigned = np.full(count, IGNORED)
  for box in range(count):
    best = max(overlaps[:, box])
    if 0 <= best < negative:
      assigned[box] = BACKGROUND
    if best >= positive:
      assigned[box] = list(overlaps[:, box]).index(best)
  for truth in range(truths if low_quality else 0):
    best = max(overlaps[truth])
    if best >= min_positive:
      equal = [box for box in range(count) if overlaps[truth, box] == best]
      for box in equal if all_best else equal[:1]:
        assigned[box] = truth
  return assigned


def scene(seed):
  """Anchors on a grid and objects on whole pixels: overlaps with many ties."""
  rng = np.random.RandomState(seed)
  grid = anchors.grid_anchors(anchors.cell_anchors(8, (2, 4), (0.5, 1, 2)), (8, 10), 8)
  low = rng.randint(0, 8, (6, 2)) * 8.0
  truths = np.concatenate([low, low + rng.randint(1, 5, (6, 2)) * 8], axis=-1)
  truths[-1] = truths[0]  # The same object twice.
  return np.asarray(grid), truths.astype(np.float32)


def overlaps_of(truths, grid):
  return np.asarray(jax.jit(boxes.iou)(truths[:, None], grid))


@functools.cache
def compiled(setting):
  return jax.jit(functools.partial(assignment.max_iou_assignment, **SETTINGS[setting]))


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('setting', SETTINGS)
def test_boxes_are_assigned_as_defined(setting, seed):
  grid, truths = scene(seed)
  overlaps = overlaps_of(truths, grid)
  assigned, best = compiled(setting)(overlaps, jnp.ones(len(truths), bool))
  np.testing.assert_array_equal(assigned, plain(overlaps, **SETTINGS[setting]))
  np.testing.assert_array_equal(best, overlaps.max(axis=0))
  assert len(set(np.asarray(assigned))) > 1  # Objects, and background or ignored.


@pytest.mark.parametrize('setting', SETTINGS)
def test_padded_objects_and_ignored_boxes_count_for_nothing(setting):
  grid, truths = scene(0)
  is_truth = np.array([True, True, False, True, False, False])
  is_candidate = np.random.RandomState(1).uniform(size=len(grid)) > 0.3
  overlaps = overlaps_of(truths, grid)
  assigned, _ = jax.vmap(compiled(setting))(
    np.stack([overlaps, overlaps]),
    np.stack([is_truth, is_truth & False]),
    is_candidate=np.stack([is_candidate, is_candidate]),
  )
  expected = plain(overlaps[is_truth][:, is_candidate], **SETTINGS[setting])
  expected = np.where(expected >= 0, np.flatnonzero(is_truth)[np.maximum(expected, 0)], expected)
  np.testing.assert_array_equal(assigned[0][is_candidate], expected)
  np.testing.assert_array_equal(assigned[0][~is_candidate], IGNORED)
  np.testing.assert_array_equal(assigned[1], np.where(is_candidate, BACKGROUND, IGNORED))


def test_overlaps_computed_in_the_same_program_equal_their_maximum():
  grid, truths = scene(1)
  truths = truths + np.float32(0.37)  # Sides that round.

  @jax.jit
  def run(truths, grid):
    overlaps = boxes.iou(truths[:, None], grid)
    return assignment.max_iou_assignment(
      overlaps, jnp.ones(len(truths), bool), positive=2.0, negative=0.0, min_positive=0.01
    )

  assigned, _ = run(truths, grid)
  # Only objects take boxes here; all do, the first aside, of which the last is a copy.
  assert set(np.asarray(assigned)) == {IGNORED, 1, 2, 3, 4, 5}


def test_objects_are_proposals_of_themselves():
  proposals, truths = jnp.zeros((3, 4)), jnp.arange(8.0).reshape(2, 4)
  assigned = jnp.array([BACKGROUND, 1, IGNORED])
  all_boxes, assigned = assignment.add_truths(proposals, assigned, truths, jnp.array([True, False]))
  np.testing.assert_array_equal(all_boxes, [*proposals, *truths])
  np.testing.assert_array_equal(assigned, [BACKGROUND, 1, IGNORED, 0, IGNORED])


draw = jax.jit(assignment.sample, static_argnums=(2, 3))


@pytest.mark.parametrize(
  ('positives', 'negatives', 'drawn'),
  # Enough; few positive; few negative; none; fewer boxes than numbers.
  [(40, 60, (4, 12)), (2, 60, (2, 14)), (40, 3, (4, 3)), (0, 0, (0, 0)), (3, 4, (3, 4))],
)
def test_a_sample_has_the_numbers_of_each_kind(positives, negatives, drawn):
  kinds = [5] * positives + [BACKGROUND] * negatives + [IGNORED] * 3
  kinds = np.random.RandomState(0).permutation(kinds)
  indices, is_drawn = draw(jax.random.key(0), kinds, 16, 0.25)
  assert indices.shape == is_drawn.shape == (16,)
  np.testing.assert_array_equal(is_drawn, np.arange(16) < sum(drawn))
  chosen = np.asarray(indices)[: sum(drawn)]
  assert len(set(chosen)) == len(chosen)
  np.testing.assert_array_equal(kinds[chosen], [5] * drawn[0] + [BACKGROUND] * drawn[1])


def test_every_example_has_the_same_chance():
  assigned = jnp.array([0] * 6 + [BACKGROUND] * 10 + [IGNORED] * 4)
  keys = jax.random.split(jax.random.key(3), 4000)
  indices, _ = jax.vmap(lambda key: draw(key, assigned, 8, 0.5))(keys)
  counts = np.bincount(np.asarray(indices).reshape(-1), minlength=20) / len(keys)
  np.testing.assert_allclose(counts, [4 / 6] * 6 + [4 / 10] * 10 + [0] * 4, atol=0.04)


def test_padding_behind_the_boxes_changes_no_draw():
  assigned = np.array([0, BACKGROUND] * 20)
  padded = np.pad(assigned, (0, 24), constant_values=IGNORED)
  for expected, result in zip(
    draw(jax.random.key(1), assigned, 8, 0.5),
    draw(jax.random.key(1), padded, 8, 0.5),
    strict=True,
  ):
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize('queries', [7, 12])
def test_matching_is_the_cheapest(queries):
  rng = np.random.RandomState(0)
  costs = rng.standard_normal((5, queries, 7))
  counts = [7, 4, 1, 0, 3]
  is_truth = np.arange(7) < np.array(counts)[:, None]
  result = jax.jit(jax.vmap(assignment.hungarian_matching))(costs, is_truth)
  for cost, count, matched in zip(costs, counts, np.asarray(result), strict=True):
    rows, columns = optimize.linear_sum_assignment(cost[:, :count])
    np.testing.assert_array_equal(matched[columns], rows)
    np.testing.assert_array_equal(matched[count:], -1)


def test_costs_that_are_no_numbers_end_too():
  cost = np.array([[np.nan, 1.0], [2.0, np.inf], [np.nan, np.nan]])
  run, is_truth = jax.jit(assignment.hungarian_matching), np.array([True, True])
  np.testing.assert_array_equal(run(cost, is_truth), [1, 0])
  matched = run(cost * np.nan, is_truth)
  assert len(set(np.asarray(matched))) == 2


def test_more_objects_than_queries_are_refused():
  with pytest.raises(ValueError, match=r'9 objects, padding included.*of 3: pad to at most 3'):
    assignment.hungarian_matching(jnp.zeros((3, 9)), jnp.ones(9, bool))
