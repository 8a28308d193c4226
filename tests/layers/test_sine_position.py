import jax
import jax.numpy as jnp
import numpy as np

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
