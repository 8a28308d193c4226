"""Lines of any width become the path of the pen."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from crossattn_jax.data.sketch_localization import thinning


def picture(text):
  return np.array([[x == '#' for x in row] for row in text.split()])


def test_a_bar_becomes_the_line_in_its_middle():
  bar = np.zeros((9, 30), bool)
  bar[2:7, 3:27] = True
  line = thinning.thin(bar)
  assert line.sum(axis=0).max() == 1
  (rows,) = np.nonzero(line.any(axis=1))
  np.testing.assert_array_equal(rows, [4])
  assert line[4].sum() >= 24 - 5
  assert thinning.width(bar, thinning.traced(line)) == 5


@pytest.mark.parametrize('seed', range(6))
def test_pieces_and_holes_stay_as_many(seed):
  dots = np.random.RandomState(seed).rand(40, 40) < 0.03
  ink = ndimage.binary_dilation(dots, iterations=1 + seed % 3)
  line = thinning.thin(ink)

  def pieces(ink):
    return ndimage.label(ink, np.ones((3, 3)))[1]

  def holes(ink):
    return ndimage.label(np.pad(~ink, 1, constant_values=True))[1]

  assert pieces(line) == pieces(ink)
  assert holes(line) == holes(ink)
  assert line.sum() < 0.5 * ink.sum()


@pytest.mark.parametrize('side', [1, 2, 3, 4])
def test_a_dot_stays(side):
  assert thinning.thin(np.ones((side, side), bool)).sum() == 1


def test_what_is_one_pixel_wide_stays():
  line = picture('#....... .#...... ..#####.')
  np.testing.assert_array_equal(thinning.thin(line), line)


def test_a_line_is_traced_from_end_to_end():
  (path,) = thinning.traced(picture('#....... .#...... ..#####.'))
  assert path.tolist() == [[0, 0], [1, 1], [2, 2], [3, 2], [4, 2], [5, 2], [6, 2]]


def test_a_closed_line_is_traced_once_around():
  (path,) = thinning.traced(picture('.##. #..# .##.'))
  assert path[0].tolist() == path[-1].tolist()
  assert {tuple(x) for x in path} == {(1, 0), (2, 0), (3, 1), (2, 2), (1, 2), (0, 1)}
  assert len(path) == 7


def test_paths_meet_in_a_crossing_and_a_dot_stands_twice():
  paths = thinning.traced(picture('..#..#. ..#.... ####### ..#.... ..#....'))
  ends = [{tuple(path[0]), tuple(path[-1])} for path in paths]
  assert len(paths) == 5
  for end in ((2, 0), (0, 2), (6, 2), (2, 4)):
    assert {end, (2, 2)} in ends
  assert {(5, 0)} in ends


def test_every_step_is_traced_once():
  line = thinning.thin(np.random.RandomState(0).rand(30, 30) < 0.5)
  steps = [
    frozenset((tuple(a), tuple(b)))
    for path in thinning.traced(line)
    for a, b in itertools.pairwise(path)
  ]
  assert len(steps) == len(set(steps))
  assert {pixel for step in steps for pixel in step} == {
    (column, row) for row, column in np.argwhere(line)
  }


def test_points_on_straight_lines_are_left_out():
  path = np.array([[0, 0], [1, 0.2], [2, -0.2], [4, 0], [4, 3], [4, 5.0]])
  np.testing.assert_array_equal(thinning.simplified(path, 0.5), [[0, 0], [4, 0], [4, 5]])
  closed = np.array([[0, 0], [4, 0], [4, 4], [0, 4], [0, 0.0]])
  np.testing.assert_array_equal(thinning.simplified(closed, 0.5), closed)
