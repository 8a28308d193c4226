"""Voxels, levels, tables of neighbours: against loops over all pairs of cells."""

import itertools

import numpy as np
import pytest

from crossattn_jax.geometry import points


def _cells(count, seed=0, stride=1):
  """Cells of a box around 0, in no order."""
  box = np.array(list(itertools.product(range(-4, 4), repeat=3)))
  return np.random.default_rng(seed).permutation(box)[:count] * stride


def _row(cells):
  return {tuple(cell): row for row, cell in enumerate(cells.tolist())}


@pytest.mark.parametrize(('size', 'stride'), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 4)])
def test_neighbours_are_the_cells_of_a_window_x_fastest(size, stride):
  cells = _cells(60, stride=stride)
  row_of = _row(cells)
  window = [np.array(o[::-1]) - size // 2 for o in itertools.product(range(size), repeat=3)]
  expected = [
    [row_of.get(tuple((cell + stride * offset).tolist()), -1) for cell in cells]
    for offset in window
  ]
  table = points.neighbours(cells, size, stride)
  np.testing.assert_array_equal(table, expected)
  assert table.dtype == np.int32
  for row, opposite in zip(table, table[::-1], strict=True):
    present = row >= 0
    np.testing.assert_array_equal(opposite[row[present]], np.flatnonzero(present))


def test_cells_at_opposite_sides_of_a_scene_are_no_neighbours():
  """A step over an edge of the box must not come out at the next line of cells."""
  table = points.neighbours(np.array([[0, 3, 9], [0, 4, 0], [0, 9, 9], [1, 0, 0]]))
  np.testing.assert_array_equal(np.flatnonzero((table >= 0).any(axis=1)), [13])


@pytest.mark.parametrize('stride', [1, 4])
def test_coarsening_takes_floors_and_finds_its_children_again(stride):
  cells = _cells(100, stride=stride)
  coarse = points.coarsen(cells, stride)
  expected = sorted({tuple(cell // (2 * stride) * 2 * stride) for cell in cells})
  np.testing.assert_array_equal(coarse.cells, expected)
  for row, cell in enumerate(cells):
    octant = coarse.octant[row]
    step = stride * np.array([octant & 1, octant >> 1 & 1, octant >> 2])
    np.testing.assert_array_equal(coarse.cells[coarse.parent[row]] + step, cell)
    assert coarse.children[octant, coarse.parent[row]] == row
  assert (coarse.children >= 0).sum() == len(cells)


def test_levels_halve_the_resolution():
  first, second, third = points.levels(_cells(80), 3)
  assert third.coarsening is None
  np.testing.assert_array_equal(first.coarsening.cells, second.cells)
  np.testing.assert_array_equal(second.neighbours, points.neighbours(second.cells, stride=2))
  np.testing.assert_array_equal(third.neighbours, points.neighbours(third.cells, stride=4))


def test_a_voxel_is_its_first_point():
  cloud = np.array([[0.9, 0, 0], [0.1, 0.1, 0.1], [-0.6, 0, 0.7], [0.95, 0.2, 0.2], [-0.9, 0, 0.9]])
  voxels = points.voxelize(cloud, 2 * np.eye(3))
  np.testing.assert_array_equal(voxels.cells, [[0, 0, 1], [2, 0, 0], [3, 0, 0]])
  np.testing.assert_array_equal(voxels.first, [2, 1, 0])
  np.testing.assert_array_equal(voxels.inverse, [2, 1, 0, 2, 0])


def test_the_originals_order_is_a_permutation():
  cloud = np.random.default_rng(0).normal(size=(300, 3))
  plain, hashed = (points.voxelize(cloud, 3 * np.eye(3), hashed=h) for h in (False, True))
  np.testing.assert_array_equal(plain.cells[plain.inverse], hashed.cells[hashed.inverse])
  np.testing.assert_array_equal(
    np.sort(plain.first[plain.inverse]), np.sort(hashed.first[hashed.inverse])
  )
  assert not np.array_equal(plain.cells, hashed.cells)


def test_rotations_turn_right_handed_about_each_axis():
  quarter = np.pi / 2
  x, y, z = np.eye(3)
  np.testing.assert_allclose(points.rotation((quarter, 0, 0)) @ y, z, atol=1e-15)
  np.testing.assert_allclose(points.rotation((0, quarter, 0)) @ z, x, atol=1e-15)
  np.testing.assert_allclose(points.rotation((0, 0, quarter)) @ x, y, atol=1e-15)
  turned = points.rotation((quarter, quarter, 0), order=(1, 0, 2)) @ y  # About x first.
  np.testing.assert_allclose(turned, x, atol=1e-15)


def test_what_is_around_a_cell_is_side_by_side():
  cells, features = np.array([[0, 0, 0], [1, 0, 0]]), np.array([[1.0, 2.0], [3.0, 4.0]])
  around = points.gather(features, points.neighbours(cells)).reshape(2, 27, 2)
  np.testing.assert_array_equal(around[:, 13], features)
  np.testing.assert_array_equal(around[0, 14], features[1])
  np.testing.assert_array_equal(around[1, 12], features[0])
  assert np.count_nonzero(around) == 8


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: points.voxelize(np.zeros((3, 2)), np.eye(3)), r'\[points, 3\].*\(3, 2\)'),
    (lambda: points.voxelize(np.array([[0, 0, 0], [0, np.nan, 0]]), np.eye(3)), 'point 1 is'),
    (lambda: points.voxelize(np.array([[0, 0, 0], [9e6, 9e6, 9e6]]), np.eye(3)), 'too large'),
    (lambda: points.neighbours(np.zeros((1, 3), int), 2), 'size must be odd, got 2'),
    (lambda: points.neighbours(np.ones((1, 3), int), 3, 2), 'stride 2 must be multiples'),
    (lambda: points.neighbours(np.zeros((2, 3), int)), 'once each'),
  ],
)
def test_what_is_wrong_is_said(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_means_are_of_groups_and_0_of_none():
  values = np.array([[1, 2], [3, 4], [5, 9]], np.uint8)
  found = points.means(values, np.array([2, 0, 2]), 4)
  np.testing.assert_array_equal(found, [[3, 4], [0, 0], [3, 5.5], [0, 0]])


def test_what_is_larger_than_its_array_is_named():
  place = np.arange(4, dtype=np.int32)
  padded = points.pad({'place_0': place}, {'place_0': (6,)})['place_0']
  np.testing.assert_array_equal(padded, [0, 1, 2, 3, -1, -1])
  with pytest.raises(ValueError, match=r'place_0 of the scene is \[4\], at most it may be \[3\]'):
    points.pad({'place_0': place}, {'place_0': (3,)})
