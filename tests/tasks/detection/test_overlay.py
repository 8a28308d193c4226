"""Pictures of objects can be read: boxes are where they are, names beside each other."""

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.tasks.detection import overlay


@pytest.mark.parametrize(
  ('size', 'expected'),
  [((96, 64), (720, 480)), ((640, 480), (640, 480)), ((4000, 3000), (1600, 1200))],
  ids=str,
)
def test_pictures_are_neither_small_nor_huge(size, expected):
  picture, factor = overlay.resized(Image.new('L', size))
  assert picture.size == expected
  assert picture.mode == 'RGB'
  assert factor == pytest.approx(expected[0] / size[0])


def test_colors_of_many_classes_differ():
  colors = overlay.colors(80).astype(int)
  assert len(np.unique(colors, axis=0)) == 80
  neighbours = np.abs(np.diff(overlay.colors(10).astype(int), axis=0)).sum(axis=1)
  assert neighbours.min() > 100
  assert overlay.colors(0).shape == (0, 3)


def test_a_box_has_its_color_its_mask_shines_through_and_others_stay():
  masks = np.zeros((1, 200, 300), bool)
  masks[0, 60:140, 80:220] = True
  color = np.array([[200, 30, 10]], np.uint8)
  picture = overlay.draw(
    Image.new('RGB', (300, 200), (100, 100, 100)), [[50, 40, 250, 160]], ['a'], color, masks
  )
  pixels = np.asarray(picture)
  assert tuple(pixels[40, 200]) == tuple(pixels[100, 50]) == tuple(color[0])
  assert tuple(pixels[60, 150]) == tuple(color[0])  # The mask's edge.
  assert tuple(pixels[100, 150]) == (145, 68, 60)  # 0.45 of the way.
  assert tuple(pixels[190, 290]) == (100, 100, 100)


def test_names_stay_in_the_picture_and_do_not_hide_each_other():
  boxes = [[0, 0, 400, 300], [2, 1, 398, 299], [1, 2, 399, 298], [390, 290, 420, 330]]
  colors = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0]], np.uint8)
  image = Image.new('RGB', (400, 300))
  pixels = np.asarray(overlay.draw(image, boxes, ['first', 'second', 'third', 'fourth'], colors))
  filled = [(pixels == color).all(axis=-1).sum() for color in colors]
  # The frame alone has up to 2 * 2 * 700 pixels; a name's ground more than 400 besides.
  frames = [np.asarray(overlay.draw(image, [box], [''], colors[:1])) for box in boxes[:1]]
  assert filled[0] > (frames[0] == colors[0]).all(axis=-1).sum()
  assert min(filled) > 400


def test_nothing_found_is_the_image():
  image = Image.effect_noise((50, 40), 30).convert('RGB')
  drawn = overlay.draw(
    image, np.zeros((0, 4)), [], np.zeros((0, 3), np.uint8), np.zeros((0, 40, 50), bool)
  )
  np.testing.assert_array_equal(np.asarray(drawn), np.asarray(image))
