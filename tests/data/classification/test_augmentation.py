import math

import numpy as np
from PIL import Image
import pytest
from scipy import stats

from crossattn_jax.data.classification import augmentation


def test_random_resized_crop_lies_inside_and_spreads_as_stated():
  rng = np.random.default_rng(0)
  width, height = 500, 375
  boxes = np.array([augmentation.random_resized_crop(width, height, rng) for _ in range(4000)])
  left, top, right, bottom = boxes.T
  assert (left >= 0).all()
  assert (top >= 0).all()
  assert (right <= width).all()
  assert (bottom <= height).all()
  share = (right - left) * (bottom - top) / (width * height)
  assert 0.078 < share.min() < 0.09
  assert 0.95 < share.max() <= 1.0
  aspect = (right - left) / (bottom - top)
  assert aspect.min() > 0.74
  assert aspect.max() < 1.35
  # Where every shape fits, area and log aspect ratio are uniform.
  small = share < 0.5
  assert stats.kstest(share[small], stats.uniform(0.08, 0.42).cdf).pvalue > 1e-3
  uniform = stats.uniform(math.log(3 / 4), 2 * math.log(4 / 3))
  assert stats.kstest(np.log(aspect[small]), uniform.cdf).pvalue > 1e-3
  # The corner is uniform over where the crop fits.
  free = (width - (right - left))[small]
  assert stats.kstest(left[small] / free, stats.uniform.cdf).pvalue > 1e-3


@pytest.mark.parametrize(
  ('size', 'box'),
  [
    ((1000, 100), (433, 0, 566, 100)),  # As wide as 4 / 3 allows: 133.
    ((100, 1000), (0, 433, 100, 566)),
    ((100, 100), (0, 0, 100, 100)),
  ],
)
def test_crop_that_never_fits_falls_back_to_the_largest_centred_one(size, box):
  rng = np.random.default_rng(0)
  assert augmentation.random_resized_crop(*size, rng, scale=(4.0, 5.0)) == box


def test_crop_of_fixed_scale_and_ratio_is_known():
  rng = np.random.default_rng(0)
  boxes = {
    augmentation.random_resized_crop(100, 100, rng, (0.25, 0.25), (1.0, 1.0)) for _ in range(2000)
  }
  assert {(box[2] - box[0], box[3] - box[1]) for box in boxes} == {(50, 50)}
  assert {box[0] for box in boxes} == {box[1] for box in boxes} == set(range(51))


def test_padded_crop_shifts_by_up_to_the_padding_and_fills_with_black():
  image = Image.fromarray(np.arange(1, 65, dtype=np.uint8).reshape(8, 8))
  padded = np.pad(np.asarray(image), 2)
  windows = {
    padded[top : top + 8, left : left + 8].tobytes() for top in range(5) for left in range(5)
  }
  rng = np.random.default_rng(0)
  seen = {np.asarray(augmentation.random_padded_crop(image, rng, 2)).tobytes() for _ in range(500)}
  assert seen == windows


def test_padding_zero_is_the_identity():
  image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
  result = augmentation.random_padded_crop(image, np.random.default_rng(0), 0)
  np.testing.assert_array_equal(np.asarray(result), np.asarray(image))


def test_flip_mirrors_half_of_the_images():
  pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
  rng = np.random.default_rng(0)
  image = Image.fromarray(pixels)
  results = [np.asarray(augmentation.random_flip(image, rng, 0.5)) for _ in range(1000)]
  flipped = [np.array_equal(result, pixels[:, ::-1]) for result in results]
  assert all(np.array_equal(r, pixels) for r, f in zip(results, flipped, strict=True) if not f)
  assert abs(np.mean(flipped) - 0.5) < 0.05


def test_color_jitter_of_a_uniform_image_scales_it_by_one_factor():
  # Contrast and saturation leave uniform grey alone, so that brightness shows by itself.
  image = Image.new('RGB', (4, 4), (100, 100, 100))
  rng = np.random.default_rng(0)
  values = [
    np.asarray(augmentation.color_jitter(image, rng, 0.4))[0, 0].tolist() for _ in range(1000)
  ]
  assert all(len(set(value)) == 1 for value in values)
  levels = np.array(values)[:, 0]
  assert 60 <= levels.min() < 62
  assert 138 < levels.max() <= 140
  assert stats.kstest(levels + 0.5, stats.uniform(60, 80).cdf).pvalue > 1e-3


def test_color_jitter_of_strength_zero_is_the_identity():
  pixels = np.random.default_rng(1).integers(256, size=(5, 6, 3), dtype=np.uint8)
  result = augmentation.color_jitter(Image.fromarray(pixels), np.random.default_rng(0), 0.0)
  np.testing.assert_array_equal(np.asarray(result), pixels)


def test_random_erasing_replaces_one_rectangle_by_noise():
  rng = np.random.default_rng(0)
  height, width = 60, 50
  erased, shares, aspects, noise = 0, [], [], []
  for _ in range(4000):
    image = augmentation.random_erasing(np.full((height, width, 3), 99, np.float32), rng)
    changed = (image != 99).all(axis=2)
    if not changed.any():
      continue
    erased += 1
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    box_height, box_width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert changed.sum() == box_height * box_width
    shares.append(box_height * box_width / (height * width))
    aspects.append(box_height / box_width)
    noise.append(image[changed].ravel())
  assert abs(erased / 4000 - 0.25) < 0.03
  assert 0.015 < min(shares) < 0.03
  assert 0.3 < max(shares) < 0.35
  assert min(aspects) > 0.25
  assert max(aspects) < 4.0
  assert abs(np.median(np.log(aspects))) < 0.12
  values = np.concatenate(noise)
  assert abs(values.mean()) < 0.01
  assert abs(values.std() - 1) < 0.01


def test_random_erasing_of_probability_zero_and_one():
  for probability in (0.0, 1.0):
    image = augmentation.random_erasing(
      np.full((32, 32, 1), 99, np.float32), np.random.default_rng(0), probability=probability
    )
    assert (image != 99).any() == bool(probability)
