"""Augmentation of pairs, by hand."""

import colorsys

import numpy as np
import pytest

from crossattn_jax.data.paired_detection import augmentation, batches, placement

FILL = placement.FILL[0]


def smooth(height, width):
  """An image in which every pixel tells where it is: red 3 x, green 3 y."""
  y, x = np.mgrid[:height, :width]
  return np.stack([3 * x, 3 * y, np.full_like(x, 9)], axis=-1).astype(np.uint8)


def marked(height, width, boxes):
  """A black image with white boxes of whole pixels."""
  image = np.zeros((height, width, 3), np.uint8)
  for x_min, y_min, x_max, y_max in boxes:
    image[y_min:y_max, x_min:x_max] = 255
  return image


def extent(image):
  """The box around what is white."""
  y, x = np.nonzero(image[..., 0] > 127 + FILL // 4)
  return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_a_mosaic_has_four_images_around_its_centre():
  sizes = [(6, 8), (8, 6), (5, 5), (20, 20)]
  mosaic = augmentation.Mosaic(sizes, center=(7, 9), canvas=(16, 16))
  tiles = [np.full((*size, 3), index, np.uint8) for index, size in enumerate(sizes)]
  image = mosaic.image(tiles)[..., 0]
  expected = np.full((16, 16), FILL)
  expected[1:7, 1:9] = 0
  expected[0:7, 9:15] = 1
  expected[7:12, 4:9] = 2
  expected[7:, 9:] = 3
  np.testing.assert_array_equal(image, expected)


def test_boxes_of_a_mosaic_lie_on_its_pixels():
  sizes = [(20, 24), (24, 20), (18, 18), (24, 24)]
  mosaic = augmentation.Mosaic(sizes, center=(21, 22), canvas=(40, 40))
  for index, size in enumerate(sizes):
    box = [5, 6, 15, 14]
    tiles = [marked(*each, [box] if each is size else []) for each in sizes]
    boxes = [np.array([box])[: int(each is size)].reshape(-1, 4) for each in sizes]
    np.testing.assert_array_equal(mosaic.boxes(boxes), [extent(mosaic.image(tiles))], str(index))


def test_boxes_of_a_mosaic_end_at_its_border():
  mosaic = augmentation.Mosaic([(20, 20)] * 4, center=(10, 10), canvas=(24, 24))
  whole = np.array([[0.0, 0, 20, 20]])
  corners = [[0, 0, 10, 10], [10, 0, 24, 10], [0, 10, 10, 24], [10, 10, 24, 24]]
  np.testing.assert_array_equal(mosaic.boxes([whole] * 4), corners)


def test_a_warp_that_changes_nothing():
  image = smooth(20, 30)
  warp = augmentation.Warp((20, 30), (20, 30))
  np.testing.assert_array_equal(warp.image(image), image)
  boxes = np.array([[3.0, 4, 9, 12]])
  np.testing.assert_allclose(warp.boxes(boxes)[0], boxes)


def test_a_warp_interpolates_between_pixels_and_the_colour_beyond():
  image = np.full((8, 8, 3), 14, np.uint8)
  shown = augmentation.Warp((8, 8), (8, 8), center=(0.5 + 0.25 / 8, 0.5)).image(image)[:, :, 0]
  np.testing.assert_allclose(shown[:, 0], 0.75 * 14 + 0.25 * FILL, atol=1)
  np.testing.assert_array_equal(shown[:, 1:], 14)
  far = augmentation.Warp((8, 8), (8, 8), center=(2, 2)).image(image)
  np.testing.assert_array_equal(far, FILL)


@pytest.mark.parametrize(
  'options',
  [
    {'scale': 1.5},
    {'scale': 0.5, 'center': (0.6, 0.4)},
    {'degrees': 90},
    {'degrees': -90, 'scale': 0.7},
    {'shear': (10, 0)},
    {'shear': (0, -10)},
    {'perspective': (0.002, -0.001)},
  ],
  ids=str,
)
def test_boxes_of_a_warp_lie_on_its_pixels(options):
  box = np.array([[26, 30, 56, 46]])
  warp = augmentation.Warp((80, 90), (70, 76), **options)
  boxes, kept = warp.boxes(box)
  assert kept.all()
  np.testing.assert_allclose(boxes[0], extent(warp.image(marked(80, 90, box))), atol=1.5)


@pytest.mark.parametrize(
  ('box', 'kept'),
  [
    ((10, 10, 14, 14), False),  # Two pixels remain.
    ((10, 10, 15, 15), True),
    ((-300, 20, 21, 40), False),  # Less than a tenth remains.
    ((-100, 20, 21, 40), True),
  ],
)
def test_which_boxes_a_warp_keeps(box, kept):
  warp = augmentation.Warp((80, 80), (40, 40), scale=0.5)
  assert warp.boxes(np.array([box], float))[1].tolist() == [kept]


def test_a_warp_keeps_no_splinters():
  boxes = np.array([[0, 10, 80, 13.9], [0, 10, 80, 14.1]])
  assert augmentation.Warp((80, 80), (80, 80)).boxes(boxes)[1].tolist() == [False, True]


def test_colours_are_multiplied_in_hue_saturation_and_value():
  image = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
  gains = (1.0, 0.6, 0.8)
  changed = augmentation.jitter_color(image, gains)
  for before, after in zip(image.reshape(-1, 3) / 255, changed.reshape(-1, 3) / 255, strict=True):
    hue, saturation, value = colorsys.rgb_to_hsv(*before)
    expected = colorsys.hsv_to_rgb(hue, 0.6 * saturation, 0.8 * value)
    # Hue has 180 levels only.
    np.testing.assert_allclose(after, expected, atol=0.03)


def test_hue_wraps_around_and_value_saturates():
  color = np.array([[[200, 0, 52]]], np.uint8)  # Hue 172 of 180.
  red, green, blue = augmentation.jitter_color(color, (1.05, 1, 2))[0, 0]
  assert (red, green, blue) == (255, 0, 0)


def test_of_grey_images_the_value_alone_changes():
  grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
  changed = augmentation.jitter_color(grey, (1.3, 1.7, 0.5))
  np.testing.assert_array_equal(changed, np.repeat(np.arange(256)[None, :, None] // 2, 3, axis=2))


def test_grey_images_may_have_one_channel():
  grey = np.random.default_rng(0).integers(256, size=(20, 30, 1)).astype(np.uint8)
  mosaic = augmentation.Mosaic([(20, 30)] * 4, center=(18, 25), canvas=(40, 60))
  warp = augmentation.Warp((40, 60), (24, 32), degrees=10, scale=0.8, center=(0.4, 0.7))

  def changed(images):
    return augmentation.jitter_color(warp.image(mosaic.image(images)), (1.01, 0.5, 1.3))

  expected = changed([np.repeat(grey, 3, axis=2)] * 4)
  np.testing.assert_array_equal(changed([grey] * 4), expected[..., :1])
  mixed = changed([grey, *[np.repeat(grey, 3, axis=2)] * 3])
  np.testing.assert_array_equal(mixed, expected)


def test_what_is_drawn_is_within_its_bounds():
  rng = np.random.default_rng(0)
  options = batches.default_config().augmentation
  options.update(degrees=5.0, shear=2.0, perspective=1e-4)
  centers = np.array([augmentation.draw_center(rng, (64, 32)) for _ in range(300)])
  assert centers.min(0).tolist() == [32, 16]
  assert centers.max(0).tolist() == [95, 47]
  warps = [augmentation.draw_warp(rng, (128, 64), (64, 32), options) for _ in range(300)]
  for name, low, high in (
    ('perspective', -1e-4, 1e-4),
    ('degrees', -5, 5),
    ('scale', 0.5, 1.5),
    ('shear', -2, 2),
    ('center', 0.4, 0.6),
  ):
    drawn = (np.array([getattr(warp, name) for warp in warps]) - low) / (high - low)
    assert np.all((drawn >= 0) & (drawn <= 1)), name
    np.testing.assert_allclose(drawn.min(0), 0, atol=0.02, err_msg=name)
    np.testing.assert_allclose(drawn.max(0), 1, atol=0.02, err_msg=name)
  gains = np.array([augmentation.draw_gains(rng, options) for _ in range(300)]) - 1
  most = [options.hue, options.saturation, options.value]
  np.testing.assert_allclose(gains.max(0), most, rtol=0.03)
  np.testing.assert_allclose(gains.min(0), np.negative(most), rtol=0.03)
