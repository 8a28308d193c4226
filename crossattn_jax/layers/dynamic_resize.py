"""Bilinear resizing between sizes that are known only when the program runs.

Images of different sizes lie in the upper left corners of equal arrays, so that one program serves
all of them; the result is the one that `layers.resize` has for each size.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def resize_matrix(
  size_in: jax.Array,
  size_out: jax.Array,
  length_in: int,
  indices_out: jax.Array,
  *,
  align_corners: bool = False,
  dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
  """Returns the matrix that resizes one axis of each example bilinearly.

  Args:
    size_in: number of samples that count, integers `[batch]`.
    size_out: the same of the result.
    length_in: of the axis.
    indices_out: which samples of the result are wanted, integers `[rows]`. Beyond `size_out` they
      are meaningless.
    align_corners: as in `resize.resize_matrix`.
    dtype: of the result.

  Returns:
    `[batch, rows, length_in]`.
  """
  last = (size_in - 1).astype(dtype)[:, None]
  index = indices_out.astype(dtype)
  if align_corners:
    steps = jnp.maximum(size_out - 1, 1).astype(dtype)[:, None]
    position = index * last / steps
  else:
    position = (index + 0.5) * (size_in / size_out).astype(dtype)[:, None] - 0.5
  position = jnp.clip(position, 0, last)[..., None]
  return jnp.maximum(1 - jnp.abs(position - jnp.arange(length_in, dtype=dtype)), 0)


def resized_classes(
  scores: jax.Array,
  sizes_in: jax.Array,
  sizes_out: jax.Array,
  shape_out: Sequence[int],
  *,
  align_corners: bool = False,
  rows_at_once: int = 64,
) -> jax.Array:
  """Resizes scores and returns the best class of each pixel, a band of rows after the other.

  All scores of the result are never in memory at once: with 150 classes they are large.

  Args:
    scores: `[batch, height, width, classes]`.
    sizes_in: (height, width) that count of each, integers `[batch, 2]`.
    sizes_out: (height, width) of each result, integers `[batch, 2]`.
    shape_out: (height, width) of the array that holds the results.
    align_corners: as in `resize.resize_matrix`.
    rows_at_once: height of a band.

  Returns:
    int32 `[batch, *shape_out]`, meaningless beyond `sizes_out`.
  """
  dtype = jnp.promote_types(scores.dtype, jnp.float32)
  scores = scores.astype(dtype)
  height, width = shape_out
  options = {'align_corners': align_corners, 'dtype': dtype}
  columns = resize_matrix(
    sizes_in[:, 1], sizes_out[:, 1], scores.shape[2], jnp.arange(width), **options
  )
  bands = -(-height // rows_at_once)

  def band(start: jax.Array) -> jax.Array:
    indices = start + jnp.arange(rows_at_once)
    rows = resize_matrix(sizes_in[:, 0], sizes_out[:, 0], scores.shape[1], indices, **options)
    resized = jnp.einsum('byh,bhwc->bywc', rows, scores, precision='highest')
    resized = jnp.einsum('bxw,bywc->byxc', columns, resized, precision='highest')
    return jnp.argmax(resized, axis=-1).astype(jnp.int32)

  classes = jax.lax.map(band, jnp.arange(bands) * rows_at_once)
  classes = jnp.moveaxis(classes, 0, 1).reshape(scores.shape[0], bands * rows_at_once, width)
  return classes[:, :height]
