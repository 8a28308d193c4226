"""Pooling with torch's geometry."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import kernels

Spans = Sequence[tuple[int, int]]  # First and behind the last.


def adaptive_average_pool(x: jax.Array, size: Sequence[int]) -> jax.Array:
  """Averages a map over `size` bins, as `torch.nn.functional.adaptive_avg_pool2d` does.

  Bin i of n covers the rows from floor(i * height / n) up to ceil((i + 1) * height / n), so that
  bins overlap where n does not divide the height.

  Args:
    x: `[..., height, width, channels]`.
    size: (rows, columns) of bins.

  Returns:
    `[..., *size, channels]` in `x`'s dtype, averaged in at least float32.

  Examples:
    >>> adaptive_average_pool(jnp.arange(16.0).reshape(4, 4, 1), (2, 2))[..., 0].tolist()
    [[2.5, 4.5], [10.5, 12.5]]
  """
  spans = [
    [(i * length // bins, -(-(i + 1) * length // bins)) for i in range(bins)]
    for length, bins in zip(x.shape[-3:-1], size, strict=True)
  ]
  return _average_over(x, *spans)


def _average_over(x: jax.Array, rows: Spans, columns: Spans) -> jax.Array:
  """Averages `[..., height, width, channels]` over spans of rows and of columns."""
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  matrices = []
  for length, spans in zip(x.shape[-3:-1], (rows, columns), strict=True):
    matrix = np.zeros((len(spans), length))
    for i, (start, end) in enumerate(spans):
      matrix[i, start:end] = 1 / (end - start)
    matrices.append(jnp.asarray(matrix, dtype))
  y = jnp.einsum('yh,xw,...hwc->...yxc', *matrices, x.astype(dtype), precision='highest')
  return y.astype(x.dtype)


def equal_windows(length: int, count: int) -> tuple[int, int]:
  """Windows of one side at one stride that cover an axis; they overlap where `count` is no divisor.

  Args:
    length: of the axis.
    count: of the windows.

  Returns:
    The side, `length - (count - 1) * stride`, and the stride, `length // count`.

  Raises:
    ValueError: the axis is shorter than the windows are many.
  """
  stride = length // count
  if stride < 1:
    raise ValueError(f'{length} pixels are too few for {count} windows')
  return length - (count - 1) * stride, stride


def equal_window_average_pool(x: jax.Array, size: Sequence[int]) -> jax.Array:
  """Averages over `equal_windows`: unlike `adaptive_average_pool`, all are of one size.

  Args:
    x: `[..., height, width, channels]`.
    size: (rows, columns) of windows.

  Returns:
    `[..., *size, channels]` in `x`'s dtype, averaged in at least float32.
  """
  spans = []
  for length, count in zip(x.shape[-3:-1], size, strict=True):
    side, stride = equal_windows(length, count)
    spans.append([(i * stride, i * stride + side) for i in range(count)])
  return _average_over(x, *spans)


def equal_window_max_pool(x: jax.Array, size: Sequence[int]) -> jax.Array:
  """Maximum over the windows of `equal_window_average_pool`.

  Args:
    x: `[batch, height, width, channels]`.
    size: (rows, columns) of windows.

  Returns:
    `[batch, *size, channels]`.
  """
  windows = [equal_windows(*axis) for axis in zip(x.shape[1:3], size, strict=True)]
  side, stride = zip(*windows, strict=True)
  return kernels.max_pool(x, side, stride)


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
