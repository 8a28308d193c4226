"""The definition of deformable sampling: every sample gathers the four cells around it."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Samples(NamedTuple):
  """Where samples lie, an axis of `(x, y)` last, with an axis of levels third from the end.

  Attributes:
    low: whole numbers of the cell before a sample, `[batch, queries, heads, levels, points, 2]`.
    part: how far behind its centre a sample lies, from 0 to 1, the same shape.
    extent: widths and heights of the levels, `[levels, 1, 2]`.
  """

  low: jax.Array
  part: jax.Array
  extent: np.ndarray


def samples_of(locations, sizes):
  """The `Samples` at fractions of maps; see `api.deformable_sampling`."""
  extent = np.array([(width, height) for height, width in sizes])[:, None]
  at = locations * extent - 0.5
  low = jnp.floor(at)
  return Samples(low, at - low, extent)


def deformable_sampling(value, locations, weights, *, sizes):
  """See `api.deformable_sampling`."""
  low, part, extent = samples_of(locations, sizes)
  areas = [height * width for height, width in sizes]
  first = np.cumsum([0, *areas[:-1]])[:, None]
  indices, shares = [], []
  for corner in itertools.product((0, 1), repeat=2):
    cell = low + np.array(corner)
    share = jnp.prod(jnp.where(np.array(corner), part, 1 - part), axis=-1)
    inside = jnp.all((cell >= 0) & (cell < extent), axis=-1)
    x, y = jnp.unstack(jnp.where(inside[..., None], cell, 0).astype(jnp.int32), axis=-1)
    indices.append(first + y * extent[..., 0] + x)
    shares.append(jnp.where(inside, share, 0) * weights)
  index, share = (jnp.stack(x, axis=-1).reshape(*x[0].shape[:3], -1) for x in (indices, shares))

  batch, queries, heads, count = index.shape
  index = jnp.swapaxes(index, 1, 2).reshape(batch, heads, queries * count, 1).astype(jnp.int32)
  cells = jnp.take_along_axis(jnp.swapaxes(value, 1, 2), index, axis=2, mode='promise_in_bounds')
  cells = cells.reshape(batch, heads, queries, count, -1)
  out = jnp.einsum('bhqsd,bqhs->bqhd', cells, share.astype(cells.dtype))
  return out.astype(value.dtype)
