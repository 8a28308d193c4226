"""Random changes of points and colours; tests/parity replays the recorded ones."""

import colorsys

import ml_collections
import numpy as np
import pytest

from crossattn_jax.data.scene_points import augmentation


@pytest.fixture
def options():
  config = ml_collections.ConfigDict()
  augmentation.add_options(config)
  return config.augmentation


def test_transforms_are_rotations_of_the_sizes_asked_for(options):
  rng = np.random.default_rng(0)
  for _ in range(20):
    transform = augmentation.random_transform(rng, options, flip=False)
    scale = np.cbrt(np.linalg.det(transform))
    assert 0.9 <= scale <= 1.1
    np.testing.assert_allclose(transform @ transform.T, scale**2 * np.eye(3), atol=1e-12)
    # Tilted by the turns about x and y alone.
    assert transform[2, 2] / scale >= np.cos(2 * np.pi / 64)
  options.flip = 0.5
  signs = [
    np.sign(np.linalg.det(augmentation.random_transform(rng, options, flip=True)))
    for _ in range(100)
  ]
  assert 30 < signs.count(-1) < 70


def test_distortion_is_of_the_size_of_decimetres(options):
  points = np.random.default_rng(0).uniform(0, 2, (300, 3)).astype(np.float32)
  rng = np.random.default_rng(1)
  assert augmentation.random_distortion(points, rng, options) is points
  options.elastic = 1.0
  moved = augmentation.random_distortion(points, rng, options) - points
  assert moved.dtype == np.float32
  assert 0.01 < moved.std() < 1
  assert augmentation.grid_size(points, 0.8) == (5, 5, 5)


def test_distortion_of_constant_noise_is_a_shift():
  points = np.random.default_rng(0).uniform(0, 1, (50, 3))
  noise = np.zeros((8, 8, 8, 3), np.float32)
  noise[..., 1] = 1
  moved = augmentation.distort(points, noise, 0.2, 0.5)
  inside = (np.abs(points / 0.2 - 2) < 0.9).all(axis=1)  # Farther from edges than smoothing sees.
  assert inside.any()
  np.testing.assert_allclose(
    moved[inside] - points[inside], [[0, 0.5, 0]] * inside.sum(), atol=1e-6
  )


def test_hue_and_saturation_are_those_of_the_standard_library():
  colors = np.random.default_rng(0).integers(0, 256, (200, 3))
  colors[:3] = [(7, 7, 7), (0, 0, 0), (255, 0, 0)]
  hsv = augmentation.to_hsv(colors)
  expected = np.array([colorsys.rgb_to_hsv(*(color / 255)) for color in colors])
  np.testing.assert_allclose(hsv, expected * [1, 1, 255], atol=1e-12)
  turned = augmentation.turn_hue(colors, 0.2, 0.9)
  back = [colorsys.hsv_to_rgb((h + 0.2) % 1, s * 0.9, v) for h, s, v in expected]
  assert np.abs(turned - np.floor(np.array(back) * 255)).max() <= 1
  # Greys stay: no channel is off by rounding down.
  np.testing.assert_array_equal(turned[:2], colors[:2])


def test_colours_stay_levels_and_do_not_change_unasked(options):
  rng, colors = (
    np.random.default_rng(0),
    np.random.default_rng(1).integers(0, 256, (100, 3), np.uint8),
  )
  np.testing.assert_array_equal(augmentation.random_colors(colors, rng, options.color), colors)
  options.update(augmentation.published())
  changed = [augmentation.random_colors(colors, rng, options.color) for _ in range(10)]
  assert min(x.min() for x in changed) >= 0
  assert max(x.max() for x in changed) <= 255
  assert all(np.abs(x - colors).mean() > 1 for x in changed)
  flat = augmentation.stretch_contrast(np.full((4, 3), 9.0), 1.0)
  np.testing.assert_array_equal(flat, 0)


def test_wrong_values_are_named(options):
  config = ml_collections.ConfigDict({'augmentation': options})
  augmentation.check_options(config)
  options.color.jitter = 2.0
  with pytest.raises(ValueError, match=r'augmentation\.color\.jitter must be a prob'):
    augmentation.check_options(config)
