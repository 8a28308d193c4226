"""Positions of the cells of a map as sines and cosines, after Vaswani et al. 2017, section 3.5.

They are float32, whatever the model computes in, as the originals' are. Networks were trained with
the sines that PyTorch has on CPUs, a polynomial: in float64 they are the same bits.
"""

import jax
import jax.numpy as jnp
import numpy as np


def sine_position(height: int, width: int, channels: int) -> jax.Array:
  """Rows and columns as whole numbers, counted from 1.

  Args:
    height: of the map.
    width: of the map.
    channels: a multiple of 4; the first half tells the row, the second the column.

  Returns:
    `[height, width, channels]` float32; programs hold those of one row and of one column.

  Examples:
    >>> sine_position(4, 6, 64).shape
    (4, 6, 64)
  """
  half = channels // 2

  def waves(length: int) -> np.ndarray:
    angles = np.arange(1, length + 1, dtype=np.float32)[:, None] / _wave_lengths(half)
    return _waves(angles.astype(np.float64)).astype(np.float32)

  size = height, width, half
  rows, columns = waves(height)[:, None], waves(width)
  return jnp.concatenate([jnp.broadcast_to(x, size) for x in (rows, columns)], axis=-1)


def masked_sine_position(padding: jax.Array, channels: int) -> jax.Array:
  """Rows and columns as shares of what is not padding, which are between 0 and 2 pi.

  Args:
    padding: bool `[batch, height, width]`, True for cells that are none of the image.
    channels: as in `sine_position`.

  Returns:
    `[batch, height, width, channels]` float32.
  """
  half, widest = channels // 2, jax.dtypes.canonicalize_dtype(jnp.float64)

  def rounded(x: jax.Array) -> jax.Array:
    # XLA multiplies by the reciprocal of what is broadcast, which in float32 differs.
    return x.astype(jnp.float32).astype(widest)

  halves = []
  for axis in (1, 2):
    count = jnp.cumsum(~padding, axis=axis, dtype=widest)
    last = jax.lax.index_in_dim(count, -1, axis)
    share = rounded(rounded(count / rounded(last + np.float32(1e-6))) * np.float32(2 * np.pi))
    halves.append(_waves(rounded(share[..., None] / _wave_lengths(half))))
  return jnp.concatenate(halves, axis=-1).astype(jnp.float32)


def _waves(angles: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
  """Sines and cosines in turn along the last axis."""
  angles = angles + np.pi / 2 * (np.arange(angles.shape[-1]) % 2).astype(angles.dtype)
  half_turns = (angles / np.pi).round()
  x = angles - np.pi * half_turns
  square = x * x
  # Fitted to three million of PyTorch's sines and cosines, until none differed.
  series = 2.605780780232424e-06 * square - 0.00019809602960136005
  for coefficient in (0.008333066246740826, -0.16666659550446983, 1):
    series = series * square + coefficient
  return x * series * (1 - 2 * (half_turns % 2))


def _wave_lengths(channels: int) -> np.ndarray:
  """Over 2 pi: from 1 to 10,000, float32 `[channels]`."""
  exponents = (2 * (np.arange(channels) // 2) / channels).astype(np.float32)
  lengths = np.power(10_000.0, exponents.astype(np.float64)).astype(np.float32)
  # Of all that maps of 96, 192, 384 and 768 channels have, PyTorch rounds one the other way.
  return np.where(exponents == np.float32(5 / 12), np.float32(46.415882), lengths)
