"""Supervoxels of hand-made rooms keep to one object each."""

import itertools

import numpy as np

from crossattn_jax.geometry import supervoxels


def _face(rng, corner, sides, density):
  """Points on a rectangle, `sides` 0 along the axis across it."""
  sides = np.array(sides)
  count = int(density * sides[sides > 0].prod())
  return corner + rng.random((count, 3)) * sides + rng.normal(0, 0.004, (count, 3))


def _room(density=1000):
  """A floor, two walls, a table in front of one, and a box of the floor's colour on the floor."""
  rng = np.random.default_rng(0)
  parts = [
    [_face(rng, (0, 0, 0), (3, 3, 0), density)],
    [_face(rng, (0, 0, 0), (3, 0, 2), density)],
    [_face(rng, (0, 0, 0), (0, 3, 2), density)],
    [_face(rng, (1, 0.6, 0.75), (1.2, 0.8, 0), density)],
    [_face(rng, (2, 2, 0), side, density) for side in ((0.5, 0, 0.5), (0, 0.5, 0.5))]
    + [_face(rng, (2, 2, 0.5), (0.5, 0.5, 0), density)],
  ]
  labels = np.repeat(np.arange(5), [sum(map(len, part)) for part in parts])
  color = np.array([(120, 90, 60), (200, 200, 190), (200, 200, 190), (90, 50, 20), (120, 90, 60)])
  colors = np.clip(color[labels] + rng.normal(0, 6, (len(labels), 3)), 0, 255)
  return np.concatenate(list(itertools.chain(*parts))), colors.astype(np.uint8), labels


def _purity(ids, labels):
  table = np.zeros((ids.max() + 1, labels.max() + 1), int)
  np.add.at(table, (ids, labels), 1)
  return table.max(axis=1).sum() / len(ids)


def test_supervoxels_rarely_cross_objects():
  points, colors, labels = _room()
  ids = supervoxels.grow(points, colors, longest=np.inf)
  assert ids.dtype == np.int32
  sizes = np.bincount(ids)
  assert sizes.min() > 0
  assert sizes[0] == sizes.max()
  assert 5 <= len(sizes) <= 150
  assert _purity(ids, labels) >= 0.95
  # Most of each face is one.
  for label in range(4):
    assert np.bincount(ids[labels == label]).max() >= 0.5 * (labels == label).sum()


def test_larger_scales_have_fewer_and_colours_can_be_left_out():
  points, colors, labels = _room(400)
  counts = [supervoxels.grow(points, colors, scale=scale).max() + 1 for scale in (0.002, 0.1, 1.0)]
  assert counts[0] > counts[1] > counts[2]
  mixed = np.random.default_rng(0).permuted(colors, axis=0)
  ids = supervoxels.grow(points, mixed, color_weight=0.0, longest=np.inf)
  assert _purity(ids, labels) >= 0.9
  assert ids.max() < 40


def test_walls_and_floors_are_cut_into_parts_of_a_metre():
  points, colors, labels = _room(400)
  whole, ids = (supervoxels.grow(points, colors, longest=side) for side in (np.inf, 1.0))
  assert whole.max() < ids.max()
  assert _purity(ids, labels) >= 0.95
  sides = [np.ptp(points[ids == number], axis=0).max() for number in range(ids.max() + 1)]
  # Points are up to a cell away from the middle of theirs, and slivers join what is beside them.
  assert np.percentile(sides, 90) <= 1.15
  assert max(sides) <= 1.5
  # Of the floor of 3 x 3 metres.
  assert len(np.unique(ids[labels == 0])) >= 9


def test_few_points_are_one():
  points = np.array([[0, 0, 0], [0.01, 0, 0], [0.2, 0, 0.1]])
  np.testing.assert_array_equal(supervoxels.grow(points[:1], np.zeros((1, 3))), [0])
  ids = supervoxels.grow(points, np.zeros((3, 3)))
  assert ids.min() == 0
  assert ids[0] == ids[1]
