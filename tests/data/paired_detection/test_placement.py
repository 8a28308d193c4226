"""Whole images on a canvas, by hand."""

import numpy as np
import pytest

from crossattn_jax.data.paired_detection import placement

FILL = placement.FILL[0]


@pytest.mark.parametrize(
  ('size', 'canvas', 'enlarge', 'scale', 'shown'),
  [
    ((40, 50), (48, 56), False, 1, (40, 50)),
    ((40, 50), (80, 120), True, 2, (80, 100)),
    ((40, 50), (31, 25), False, 0.5, (20, 25)),
  ],
)
def test_a_letterbox_keeps_proportions(size, canvas, enlarge, scale, shown):
  letterbox = placement.Letterbox(size, canvas, enlarge)
  assert (letterbox.scale, letterbox.shown) == (scale, shown)
  image = letterbox.image(np.zeros((*size, 3), np.uint8))
  assert image.shape == (*canvas, 3)
  assert (image == 0).all(axis=-1).sum() == shown[0] * shown[1]
  assert set(np.unique(image)) <= {0, FILL}


def test_boxes_of_a_letterbox_lie_on_its_pixels_and_come_back():
  box = np.array([[10, 20, 30, 36]])
  letterbox = placement.Letterbox((40, 50), (90, 100))
  assert letterbox.margin == (5, 0)
  np.testing.assert_array_equal(letterbox.boxes(box), [[20, 45, 60, 77]])
  image = np.zeros((40, 50, 3), np.uint8)
  image[20:36, 10:30] = 255
  y, x = np.nonzero(letterbox.image(image)[..., 0] > 160)
  extent = [x.min(), y.min(), x.max() + 1, y.max() + 1]
  np.testing.assert_allclose(extent, [20, 45, 60, 77], atol=1)
  np.testing.assert_allclose(letterbox.restored(letterbox.boxes(box)), box)
  np.testing.assert_array_equal(letterbox.restored(np.array([[-9, 0, 999, 90]])), [[0, 0, 50, 40]])


def test_means_of_parts_of_pixels():
  # Of (row, column): two thirds of a pixel each, or whole ones.
  rows = np.array([30, 60, 240])[:, None, None]
  image = np.broadcast_to(rows, (3, 4, 3)).astype(np.uint8)
  shown = placement.resized(image, (2, 2), area=True)
  np.testing.assert_array_equal(shown[:, 0, 0], [(30 + 60 / 2) / 1.5, (60 / 2 + 240) / 1.5])
  np.testing.assert_array_equal(shown[:, 1], shown[:, 0])
  columns = placement.resized(image.transpose(1, 0, 2), (2, 2), area=True)
  np.testing.assert_array_equal(columns, shown.transpose(1, 0, 2))
  # What grows is interpolated.
  np.testing.assert_array_equal(
    placement.resized(image, (6, 8), area=True), placement.resized(image, (6, 8))
  )
