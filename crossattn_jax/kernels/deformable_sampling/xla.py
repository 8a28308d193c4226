"""Deformable sampling without gathers: a bilinear sample is a product of two hat functions.

So how much each cell of a level weighs for a query is a sum over its few samples of an outer
product, and the result one product of matrices a level and head.
"""

import jax.numpy as jnp

from crossattn_jax.kernels.deformable_sampling import reference


def deformable_sampling(value, locations, weights, *, sizes):
  """See `api.deformable_sampling`."""
  low, part, _ = reference.samples_of(locations, sizes)
  dtype = jnp.promote_types(value.dtype, jnp.float32)
  out, first = 0, 0
  for level, (height, width) in enumerate(sizes):
    columns, rows = (
      _hats(low[:, :, :, level, :, axis], part[:, :, :, level, :, axis], length)
      for axis, length in enumerate((width, height))
    )
    rows *= weights[:, :, :, level, :, None]
    # Of so few samples no product is made: the sum is one pass over its result.
    total = sum(
      rows[:, :, :, k, :, None] * columns[:, :, :, k, None, :] for k in range(rows.shape[3])
    )
    total = total.reshape(*total.shape[:3], height * width).astype(value.dtype)
    cells = value[:, first : first + height * width]
    out += jnp.einsum('bqhn,bnhd->bqhd', total, cells, preferred_element_type=dtype)
    first += height * width
  return out.astype(value.dtype)


def _hats(low, part, length):
  """Weights `[..., length]` of the cells of an axis: of two neighbours at most, none outside."""
  cells, low, part = jnp.arange(length, dtype=low.dtype), low[..., None], part[..., None]
  # Not max(0, 1 - |distance|): at a cell's centre its derivative is not the definition's.
  return jnp.where(cells == low, 1 - part, 0) + jnp.where(cells == low + 1, part, 0)
