import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data.classification import rand_augment

BICUBIC = Image.Resampling.BICUBIC
FILL = (124, 116, 104)


def noise(height: int = 20, width: int = 30, channels: int = 3) -> Image.Image:
  shape = (height, width, channels) if channels > 1 else (height, width)
  return Image.fromarray(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))


def levels() -> Image.Image:
  """Every grey level once."""
  return Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))


def apply(name: str, image: Image.Image, strength: float, fill=FILL) -> np.ndarray:
  return np.asarray(rand_augment.OPERATIONS[name](image, strength, fill, BICUBIC))


def test_the_operations_are_the_fifteen_of_the_increasing_set():
  assert len(rand_augment.OPERATIONS) == 15
  assert len(rand_augment.SIGNED) == 9
  assert rand_augment.SIGNED.issubset(rand_augment.OPERATIONS)


@pytest.mark.parametrize('name', sorted(rand_augment.SIGNED | {'solarize', 'solarize_add'}))
def test_strength_zero_changes_nothing(name):
  np.testing.assert_array_equal(apply(name, noise(), 0.0), np.asarray(noise()))


@pytest.mark.parametrize('name', rand_augment.OPERATIONS)
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('strength', [-1.0, 0.35, 1.0])
def test_every_operation_keeps_size_and_mode(name, channels, strength):
  image = noise(channels=channels)
  if strength < 0 and name not in rand_augment.SIGNED:
    strength = -strength
  result = rand_augment.OPERATIONS[name](image, strength, FILL[:channels], BICUBIC)
  assert (result.size, result.mode) == (image.size, image.mode)


@pytest.mark.parametrize(('strength', 'bits'), [(0.0, 4), (0.24, 4), (0.3, 3), (0.9, 1), (1.0, 0)])
def test_posterize_keeps_four_bits_down_to_none(strength, bits):
  expected = np.arange(256) & (0xFF00 >> bits & 0xFF)
  np.testing.assert_array_equal(apply('posterize', levels(), strength).ravel(), expected)


def test_solarize_inverts_from_a_threshold_that_falls_with_strength():
  x = np.arange(256)
  for strength, threshold in [(0.0, 256), (0.5, 128), (0.9, 26), (1.0, 0)]:
    expected = np.where(x < threshold, x, 255 - x)
    np.testing.assert_array_equal(apply('solarize', levels(), strength).ravel(), expected)


def test_solarize_add_brightens_the_dark_half():
  x = np.arange(256)
  for strength, added in [(0.5, 55), (0.9, 99), (1.0, 110)]:
    expected = np.where(x < 128, np.minimum(x + added, 255), x)
    np.testing.assert_array_equal(apply('solarize_add', levels(), strength).ravel(), expected)


def test_invert_and_auto_contrast_and_equalize_of_known_levels():
  x = np.arange(256)
  np.testing.assert_array_equal(apply('invert', levels(), 0.9).ravel(), 255 - x)
  half = Image.fromarray(np.repeat(64 + np.arange(128, dtype=np.uint8)[:, None], 1000, axis=1))
  stretched = np.arange(128) * 255 / 127
  for name in ('auto_contrast', 'equalize'):
    np.testing.assert_allclose(apply(name, half, 0.9)[:, 0], stretched, atol=1)


def test_brightness_scales_by_one_plus_or_minus_nine_tenths_of_the_strength():
  image = Image.new('RGB', (2, 2), (100, 50, 10))
  np.testing.assert_allclose(apply('brightness', image, -1.0)[0, 0], [10, 5, 1], atol=1)
  np.testing.assert_allclose(apply('brightness', image, 1.0)[0, 0], [190, 95, 19], atol=1)
  np.testing.assert_allclose(apply('brightness', image, 0.5)[0, 0], [145, 72.5, 14.5], atol=1)


def test_color_moves_away_from_and_towards_grey():
  image = Image.new('RGB', (2, 2), (200, 100, 100))
  grey = np.asarray(image.convert('L'))[0, 0].astype(float)
  for strength in (-0.9, 0.5):
    expected = grey + (1 + 0.9 * strength) * (np.array([200, 100, 100]) - grey)
    np.testing.assert_allclose(
      apply('color', image, strength)[0, 0], np.clip(expected, 0, 255), atol=1
    )


@pytest.mark.parametrize('sign', [1, -1])
def test_translation_moves_by_the_share_of_the_side_and_fills_with_the_mean_colour(sign):
  image = noise(20, 40)
  pixels = np.asarray(image)
  strength = sign * 0.5  # 0.5 * 0.45 * 40 = 9 columns.
  moved = apply('translate_x', image, strength)
  kept, filled = (moved[:, :-9], moved[:, -9:]) if sign > 0 else (moved[:, 9:], moved[:, :9])
  np.testing.assert_array_equal(kept, pixels[:, 9:] if sign > 0 else pixels[:, :-9])
  np.testing.assert_array_equal(filled, np.broadcast_to(FILL, filled.shape))
  moved = apply('translate_y', image, 1.0)  # 0.45 * 20 = 9 rows.
  np.testing.assert_array_equal(moved[:-9], pixels[9:])
  np.testing.assert_array_equal(moved[-9:], np.broadcast_to(FILL, (9, 40, 3)))


def test_full_translation_at_240_pixels_is_the_limit_of_the_recipe():
  pixels = np.asarray(noise(240, 240))
  moved = apply('translate_x', noise(240, 240), 1.0)
  limit = int(0.45 * 240)
  np.testing.assert_array_equal(moved[:, :-limit], pixels[:, limit:])
  np.testing.assert_array_equal(moved[:, -limit:], np.broadcast_to(FILL, (240, limit, 3)))


def test_shear_moves_each_row_by_its_share():
  # At strength 1/3 the source column is x + 0.1 (y + 1/2); Pillow rounds grey levels down.
  ramp = np.tile(np.arange(200, dtype=np.uint8), (101, 1))
  sheared = apply('shear_x', Image.fromarray(ramp), 1 / 3, (0,)).astype(float)
  rows = np.arange(101)
  np.testing.assert_allclose(sheared[:, 50], np.floor(50 + 0.1 * (rows + 0.5)), atol=0)
  sheared = apply('shear_y', Image.fromarray(ramp.T.copy()), 1 / 3, (0,)).astype(float)
  np.testing.assert_allclose(sheared[50], np.floor(50 + 0.1 * (rows + 0.5)), atol=0)


def test_rotation_is_thirty_degrees_counter_clockwise_at_full_strength():
  pixels = np.zeros((101, 101), np.uint8)
  pixels[48:53, 88:93] = 255  # 40 pixels to the right of the centre.
  rotated = apply('rotate', Image.fromarray(pixels), 1.0, (0,)).astype(float)
  row, column = (np.indices(pixels.shape) * rotated).sum((1, 2)) / rotated.sum()
  np.testing.assert_allclose(
    [row, column], [50 - 40 * np.sin(np.pi / 6), 50 + 40 * np.cos(np.pi / 6)], atol=0.3
  )


def test_draws_two_operations_each_applied_half_of_the_time(monkeypatch):
  applied = []
  recorded = {
    name: lambda image, strength, fill, resample, name=name: (
      applied.append((name, strength)) or image
    )
    for name in rand_augment.OPERATIONS
  }
  monkeypatch.setattr(rand_augment, 'OPERATIONS', recorded)
  rng = np.random.default_rng(0)
  draws = 6000
  for _ in range(draws):
    rand_augment.rand_augment(noise(), rng, fill=FILL)
  assert abs(len(applied) / draws - 1.0) < 0.04  # Two, half of the time each.
  names = [name for name, _ in applied]
  counts = np.array([names.count(name) for name in recorded])
  np.testing.assert_allclose(counts / len(applied), 1 / 15, atol=0.012)
  strengths = np.array([strength for _, strength in applied])
  signed = np.array([name in rand_augment.SIGNED for name in names])
  assert abs((strengths[signed] < 0).mean() - 0.5) < 0.04
  assert (strengths[~signed] > 0).all()
  assert np.abs(strengths).max() == 1.0  # Magnitudes beyond 10 are cut: 2.3% of N(9, 0.5).
  assert abs((np.abs(strengths) == 1.0).mean() - 0.0228) < 0.01
  assert abs(np.abs(strengths).mean() - 0.9) < 0.002
  assert abs(np.abs(strengths).std() - 0.05) < 0.003


def test_result_is_a_function_of_the_generator():
  results = [
    np.asarray(rand_augment.rand_augment(noise(), np.random.default_rng(seed), fill=FILL))
    for seed in (7, 7)
  ]
  np.testing.assert_array_equal(*results)


def test_no_operation_or_probability_zero_leaves_the_image():
  for options in ({'num_ops': 0}, {'probability': 0.0}):
    result = rand_augment.rand_augment(noise(), np.random.default_rng(0), fill=FILL, **options)
    np.testing.assert_array_equal(np.asarray(result), np.asarray(noise()))
