"""Tables of a scene against what its cells say."""

import numpy as np

from crossattn_jax.data.scene_points import tables
from crossattn_jax.geometry import points

BUCKET = (700, 300, 80, 40, 20)


def _cells(count=400, side=14):
  rng = np.random.default_rng(0)
  cells = np.unique(rng.integers(0, side, (count, 3)), axis=0)
  return cells, rng.integers(0, 256, (len(cells), 3)).astype(np.uint8)


def test_windows_hold_the_colours_around_each_cell():
  cells, colors = _cells()
  pyramid = points.Pyramid.build(cells, 5)
  windows = tables.tables(pyramid, colors, BUCKET)['windows']
  shown = colors / np.float32(127.5) - np.float32(1)
  color_of = {tuple(cell): color for cell, color in zip(cells.tolist(), shown, strict=True)}
  for row in (0, 57, len(cells) - 1):
    for j in range(125):
      offset = np.array([j % 5, j // 5 % 5, j // 25]) - 2
      expected = color_of.get(tuple((cells[row] + offset).tolist()), np.zeros(3))
      np.testing.assert_array_equal(windows[row, 3 * j : 3 * j + 3], expected)
  assert not windows[len(cells) :].any()


def test_tables_say_neighbours_children_and_places():
  cells, colors = _cells()
  pyramid = points.Pyramid.build(cells, 5)
  found = tables.tables(pyramid, colors, BUCKET)
  assert found.keys() == tables.shapes(BUCKET).keys() == tables.empty(BUCKET).keys()
  for name, (shape, dtype) in tables.shapes(BUCKET).items():
    assert (found[name].shape, found[name].dtype) == (shape, dtype)
  for level, rows in enumerate(pyramid.rows):
    table = found[f'neighbours_{level}']
    np.testing.assert_array_equal(table[13, :rows], np.arange(rows))
    assert (table[:, rows:] == -1).all()
    to, from_ = np.nonzero(table >= 0)
    step = pyramid.cells[level][table[to, from_]] - pyramid.cells[level][from_]
    offset = np.stack([to % 3, to // 3 % 3, to // 9], axis=1) - 1
    np.testing.assert_array_equal(step, offset * 2**level)
  for level, (finer, coarser) in enumerate(zip(pyramid.rows[:-1], pyramid.rows[1:], strict=True)):
    parent, octant = np.divmod(found[f'place_{level}'][:finer], 8)
    children = found[f'children_{level}']
    np.testing.assert_array_equal(children[octant, parent], np.arange(finer))
    assert (found[f'place_{level}'][finer:] == -1).all()
    assert (children[:, coarser:] == -1).all()
    assert (children >= 0).sum() == finer


def test_a_column_is_as_large_as_its_bucket_allows():
  cells, _ = _cells(3000)
  pyramid = points.Pyramid.build(cells, 5)
  for bucket in ((500, 400, 400, 40, 20), (2000, 90, 400, 40, 20), (2000, 2000, 2000, 3, 20)):
    kept = tables.within(pyramid, bucket, np.array([3.0, 4.0]))
    assert (np.diff(kept) > 0).all()
    rows = points.Pyramid.build(cells[kept], 5).rows
    assert tables.fits(rows, bucket)
    distance = np.square(cells[:, :2] - [3, 4]).sum(axis=1)
    left = np.setdiff1d(np.arange(len(cells)), kept)
    assert distance[kept].max() <= distance[left].min()
    # One cell more would not fit.
    closest = left[np.lexsort((left, distance[left]))[0]]
    more = np.sort(np.append(kept, closest))
    assert not tables.fits(points.Pyramid.build(cells[more], 5).rows, bucket)


def test_buckets_of_their_own_are_an_eighth_larger_at_most():
  for count in (1, 7, 100, 4097, 123_456):
    (rounded,) = tables.rounded_up([count])
    assert count <= rounded <= max(count * 9 / 8 + 8, 8)
