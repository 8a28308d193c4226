import numpy as np
import pytest

from crossattn_jax.geometry import strokes

DRAWING = [[[10, 20, 30], [5, 6, 7]], [[0, 100], [50, 40]]]


def test_simplified_drawings_are_points_of_each_stroke():
  first, second = strokes.from_simplified(DRAWING)
  np.testing.assert_array_equal(first, [[10, 5], [20, 6], [30, 7]])
  np.testing.assert_array_equal(second, [[0, 50], [100, 40]])


def test_steps_are_added_up_and_divided_where_the_pen_is_lifted():
  rows = np.array([[3, 1, 0], [2, -1, 1], [-4, 5, 0], [0, 7, 1]], np.int16)
  first, second = strokes.from_stroke3(rows)
  np.testing.assert_array_equal(first, [[3, 1], [5, 0]])
  np.testing.assert_array_equal(second, [[1, 5], [1, 12]])


def test_steps_far_apart_do_not_overflow():
  rows = np.full((4, 3), (20_000, 0, 0), np.int16)
  assert strokes.from_stroke3(rows)[0][-1].tolist() == [80_000, 0]


def test_a_drawing_fills_its_square_in_its_proportions():
  drawing = [np.array([[-5, 100], [15, 140]]), np.array([[5, 120]])]
  first, second = strokes.fit(drawing, size=100, padding=10)
  np.testing.assert_allclose(first, [[10, 10], [50, 90]])
  np.testing.assert_allclose(second, [[30, 50]])


@pytest.mark.parametrize(
  ('drawing', 'message'),
  [
    ([], 'no strokes'),
    ({'strokes': 1}, 'no strokes'),
    ([[[1, 2], [3, 4], [0, 16]]], 'times in stroke 1, as the raw drawings have them'),
    ([DRAWING[0], [[1, 2], [3]]], 'a stroke 2 that is not'),
    ([[[], []]], 'a stroke 1 that is not'),
    ([[['a'], ['b']]], 'a stroke 1 that is not'),
  ],
)
def test_what_is_no_simplified_drawing_is_said(drawing, message):
  with pytest.raises(ValueError, match=message):
    strokes.from_simplified(drawing)


@pytest.mark.parametrize('shape', [(0, 3), (4, 2), (3,)])
def test_what_is_no_stroke3_is_said(shape):
  with pytest.raises(ValueError, match=r'expected \[steps, 3\]'):
    strokes.from_stroke3(np.zeros(shape, np.int16))
