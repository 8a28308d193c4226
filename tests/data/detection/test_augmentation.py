"""Pixels, boxes and masks of a view lie on each other, and views are those of the recipes."""

import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data.detection import augmentation, batches

BOX = np.array([[10.0, 20.0, 30.0, 40.0]])
WHOLE = (0.0, 0.0, 64.0, 48.0)


@pytest.mark.parametrize(
  ('view', 'expected'),
  [
    (augmentation.View(WHOLE, (48, 64)), [10, 20, 30, 40]),
    (augmentation.View(WHOLE, (96, 128)), [20, 40, 60, 80]),
    (augmentation.View(WHOLE, (24, 128)), [20, 10, 60, 20]),
    (augmentation.View(WHOLE, (96, 128), mirrored=True), [68, 40, 108, 80]),
    # Below, it ends beyond the part.
    (augmentation.View((8.0, 16.0, 40.0, 36.0), (40, 64)), [4, 8, 44, 40]),
    (augmentation.View((8.0, 16.0, 40.0, 36.0), (40, 64), mirrored=True), [20, 8, 60, 40]),
    # Beyond the part, nothing is left of it.
    (augmentation.View((32.0, 0.0, 64.0, 48.0), (48, 32)), [0, 20, 0, 40]),
  ],
)
def test_boxes_are_those_made_by_hand_and_pixels_and_masks_fill_them(view, expected):
  np.testing.assert_array_equal(view.boxes(BOX), [expected])
  mask = np.zeros((48, 64), np.uint8)
  mask[20:40, 10:30] = 1
  left, top, right, bottom = expected
  filled = np.zeros(view.size, np.uint8)
  filled[top:bottom, left:right] = 1
  np.testing.assert_array_equal(view.mask(mask), filled)
  image = Image.fromarray(np.repeat(mask[..., None] * np.uint8(200), 3, axis=2))
  inside = view.image(image)[..., 0] > 100
  np.testing.assert_array_equal(inside, filled == 1)


def test_boxes_bound_masks_to_a_pixel_at_any_size():
  rng = np.random.default_rng(0)
  mask = np.zeros((48, 64), np.uint8)
  mask[5:44, 7:52] = np.hypot(*np.ogrid[-1:1:39j, -1:1:45j]) <= 1
  box = np.array([[7.0, 5.0, 52.0, 44.0]])
  for _ in range(20):
    size = tuple(rng.integers(40, 150, 2))
    view = augmentation.View(WHOLE, size, bool(rng.integers(2)))
    shown = view.mask(mask)
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    bounds = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(view.boxes(box)[0], bounds, atol=1)


def _options(**changes):
  options = batches.default_config().augmentation
  options.update_from_flattened_dict(changes)
  return options


def _views(size, canvas, options, count=200):
  return [augmentation.draw(np.random.default_rng(i), size, canvas, options) for i in range(count)]


def test_short_sides_are_drawn_from_the_range_and_long_sides_end_it():
  options = _options(short_side=(480, 800), short_step=32, long_side=1333)
  views = _views((480, 640), (800, 1344), options)
  heights = {view.size[0] for view in views}
  assert heights == set(range(480, 801, 32))
  assert all(view.size[1] == int(view.size[0] * 4 / 3 + 0.5) for view in views)
  assert all(view.region == (0, 0, 640, 480) for view in views)
  assert 0.35 < np.mean([view.mirrored for view in views]) < 0.65
  assert {view.size[0] for view in _views((300, 900), (800, 1344), options)} == set(range(444, 445))


def test_without_sizes_an_image_fills_its_canvas():
  (view,) = _views((100, 200), (64, 96), _options(flip=0.0), 1)
  assert view == augmentation.View((0, 0, 200, 100), (48, 96))
  (view,) = _views((200, 100), (96, 64), _options(flip=1.0), 1)
  assert view == augmentation.View((0, 0, 100, 200), (96, 48), mirrored=True)


@pytest.mark.parametrize(('size', 'canvas'), [((48, 64), (96, 128)), ((64, 48), (128, 96))])
def test_crops_are_parts_of_the_resized_image_in_its_orientation(size, canvas):
  changes = {'probability': 0.5, 'short_side': (40, 60), 'short_step': 10, 'sides': (30, 50)}
  views = _views(size, canvas, _options(**{f'crop.{key}': value for key, value in changes.items()}))
  cropped = [view for view in views if view.region != (0, 0, size[1], size[0])]
  assert 0.35 < len(cropped) / len(views) < 0.65
  starts = np.array([view.region[:2] for view in cropped])
  assert (starts >= 0).all()
  assert (starts.std(0) > 2).all()
  for view in cropped:
    left, top, right, bottom = view.region
    assert right <= size[1]
    assert bottom <= size[0]
    # It is 30 to 50 pixels where the image is 40, 50 or 60 pixels high.
    assert min(right - left, bottom - top) >= 30 * 48 / 60 - 1
    assert max(right - left, bottom - top) <= 50 * 48 / 40 + 1
    upright = view.size[0] > view.size[1]
    assert view.size[0] == view.size[1] or upright == (size[0] > size[1])
    assert all(side <= most for side, most in zip(view.size, canvas, strict=True))
    # Proportions are kept.
    assert abs((right - left) / (bottom - top) * view.size[0] - view.size[1]) < 2
