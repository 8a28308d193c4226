import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.layers import sine_position


def test_rows_and_columns_count_from_one_at_growing_wave_lengths():
  position = sine_position.sine_position(3, 2, 8)
  assert position.shape == (3, 2, 8)
  assert position.dtype == np.float32
  for row, column in np.ndindex(3, 2):
    waves = [f(at / t) for at in (row + 1, column + 1) for t in (1, 100) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(position[row, column], waves, atol=1e-6)


def test_programs_hold_no_whole_maps():
  program = jax.jit(lambda: sine_position.sine_position(64, 48, 32)).lower().as_text()
  assert len(program) < 64 * 48 * 32


def test_padding_ends_the_map_at_two_pi():
  padding = np.zeros((2, 4, 6), bool)
  padding[1, 2:] = padding[1, :, 3:] = True
  position = np.asarray(sine_position.masked_sine_position(jnp.asarray(padding), 8))
  inside = np.asarray(sine_position.masked_sine_position(jnp.zeros((1, 2, 3), bool), 8))
  np.testing.assert_allclose(position[1, :2, :3], inside[0], atol=1e-6)
  y, x = (np.array([1, 2]) * np.pi)[:, None], np.arange(1, 4) * 2 * np.pi / 3
  np.testing.assert_allclose(inside[0, ..., 0], np.sin(y) + 0 * x, atol=1e-5)
  np.testing.assert_allclose(inside[0, ..., 5], np.cos(x) + 0 * y, atol=1e-5)
  # Behind the last row nothing is, and the count stays 0.
  np.testing.assert_allclose(position[1, 2:, 5, 4:], position[1, 2:, 2, 4:], atol=1e-6)


@pytest.mark.torch
def test_in_float64_positions_are_pytorch_s_to_the_last_bit():
  torch = pytest.importorskip('torch')

  def sines(positions, half):
    """Of float32 positions of one axis, as DETR computes them."""
    lengths = 10_000 ** (2 * (torch.arange(half, dtype=torch.float32) // 2) / half)
    angles = positions[:, None] / lengths
    return torch.stack([angles[:, ::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1).numpy()

  for length, half in [(13, 384), (25, 128), (50, 96), (132, 48), (100, 192)]:
    count = torch.arange(1, length + 1, dtype=torch.float32)
    whole = sine_position.sine_position(length, 2, 2 * half)
    np.testing.assert_array_equal(whole[:, 0, :half], sines(count, half))
    with jax.enable_x64(True):
      shares = sine_position.masked_sine_position(jnp.zeros((1, length, 2), bool), 2 * half)
    expected = sines(count / (count[-1:] + 1e-6) * (2 * np.pi), half)
    np.testing.assert_array_equal(shares[0, :, 0, :half], expected)
