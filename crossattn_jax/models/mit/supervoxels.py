"""Means over supervoxels (MIT, arXiv 2310.12817), as products with a matrix of memberships.

So there is no scatter in either direction, and no result depends on padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from crossattn_jax import parallel


class Supervoxels(NamedTuple):
  """What a scene's points are summarised to.

  Attributes:
    means: of their features, `[batch, supervoxels, channels]`, 0 where there is no point.
    position: `[batch, supervoxels, 3]`.
    mask: bool `[batch, supervoxels]`, which are tokens.
    counts: points in each, integers `[batch, supervoxels]`.
    inconsistency: of `inconsistency`, `[batch]`.
  """

  means: jax.Array
  position: jax.Array
  mask: jax.Array
  counts: jax.Array
  inconsistency: jax.Array


def summarise(
  x: jax.Array,
  ids: jax.Array,
  num_tokens: jax.Array,
  position: jax.Array,
  mask_empty: bool = False,
) -> Supervoxels:
  """Makes supervoxels of cells.

  Args:
    x: features of the cells, `[batch, n, channels]`.
    ids: see `membership`.
    num_tokens: supervoxels of each scene, `[batch]`.
    position: of the supervoxels, `[batch, supervoxels, 3]`.
    mask_empty: whether those without a cell, but of an id below another one's, are no tokens.
  """
  members = membership(ids, position.shape[1])
  means = parallel.constrain(pool(x, members), 'batch', 'tokens', 'channels')
  counts = members.sum(axis=1)
  mask = jnp.arange(position.shape[1]) < num_tokens[:, None]
  if mask_empty:
    mask &= counts > 0
  return Supervoxels(means, position, mask, counts, inconsistency(x, means, members))


def membership(ids: jax.Array, count: int) -> jax.Array:
  """Says which cell is in which supervoxel.

  Args:
    ids: of the supervoxel of each cell, integers `[batch, n]`, -1 in padding.
    count: of supervoxels, the largest id there may be plus 1.

  Returns:
    Booleans `[batch, n, count]`.
  """
  return ids[..., None] == jnp.arange(count)


def pool(x: jax.Array, members: jax.Array) -> jax.Array:
  """Averages cells.

  Args:
    x: `[batch, n, channels]`; rows in no supervoxel may hold anything.
    members: of `membership`.

  Returns:
    `[batch, count, channels]` in at least float32; 0 for a supervoxel without cells.
  """
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  x = jnp.where(members.any(axis=-1, keepdims=True), x, 0)
  sums = jnp.einsum('bns,bnc->bsc', members.astype(x.dtype), x, preferred_element_type=dtype)
  return sums / jnp.maximum(members.sum(axis=1), 1)[..., None].astype(dtype)


def unpool(means: jax.Array, members: jax.Array) -> jax.Array:
  """Gives each cell `[batch, n, channels]` the mean of its supervoxel, and padding 0."""
  return jnp.einsum('bns,bsc->bnc', members.astype(means.dtype), means)


def inconsistency(x: jax.Array, means: jax.Array, members: jax.Array) -> jax.Array:
  """The mean squared distance of cells from the mean of their supervoxel, per scene.

  Args:
    x: `[batch, n, channels]`.
    means: of `pool`.
    members: of `membership`.

  Returns:
    `[batch]` in at least float32.
  """
  inside = members.any(axis=-1)
  distance = jnp.where(inside[..., None], x.astype(means.dtype) - unpool(means, members), 0)
  count = jnp.maximum(inside.sum(axis=1), 1) * x.shape[-1]
  return jnp.square(distance).sum(axis=(1, 2)) / count.astype(means.dtype)
