"""Pooling with torch's geometry."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import kernels


def adaptive_average_pool(x: jax.Array, size: Sequence[int]) -> jax.Array:
  """Averages a map over `size` bins, as `torch.nn.functional.adaptive_avg_pool2d` does.

  Bin i of n covers the rows from floor(i * height / n) up to ceil((i + 1) * height / n), so that
  bins overlap where n does not divide the height.

  Args:
    x: `[..., height, width, channels]`.
    size: (rows, columns) of bins.

  Returns:
    `[..., *size, channels]` in `x`'s dtype, averaged in at least float32.
  """
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  rows, columns = (
    jnp.asarray(_bin_matrix(length, bins), dtype)
    for length, bins in zip(x.shape[-3:-1], size, strict=True)
  )
  y = jnp.einsum('yh,xw,...hwc->...yxc', rows, columns, x.astype(dtype), precision='highest')
  return y.astype(x.dtype)


def _bin_matrix(length: int, bins: int) -> np.ndarray:
  matrix = np.zeros((bins, length))
  for i in range(bins):
    start, end = i * length // bins, -(-(i + 1) * length // bins)
    matrix[i, start:end] = 1 / (end - start)
  return matrix


def max_pool(
  x: jax.Array, side: int, stride: int, padding: int = 0, ceil_mode: bool = False
) -> jax.Array:
  """Maximum over square windows, as `torch.nn.functional.max_pool2d` places them.

  Args:
    x: `[batch, height, width, channels]`.
    side: of the window.
    stride: in both directions.
    padding: on each of the four sides, never the maximum.
    ceil_mode: whether a last window that the map fills in part counts.
  """
  margins = []
  for length in x.shape[1:3]:
    covered = length + 2 * padding - side
    windows = -(-covered // stride) + 1 if ceil_mode else covered // stride + 1
    if (windows - 1) * stride >= length + padding:
      windows -= 1  # It would see padding only.
    margins.append((padding, (windows - 1) * stride + side - length - padding))
  # The last pixels may be in no window.
  x = x[:, : x.shape[1] + min(margins[0][1], 0), : x.shape[2] + min(margins[1][1], 0)]
  margins = tuple((before, max(after, 0)) for before, after in margins)
  return kernels.max_pool(x, side, stride, margins)
