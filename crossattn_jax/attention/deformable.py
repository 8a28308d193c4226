"""Deformable attention: a query looks at a few points of every map, around a point of its own.

Source: Deformable DETR, Zhu et al. 2021 (arXiv 2010.04159), section 4.1.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import kernels, parallel
from crossattn_jax.layers import linear, module

Sizes = Sequence[tuple[int, int]]


def sampling_locations(reference: jax.Array, offsets: jax.Array, sizes: Sizes) -> jax.Array:
  """Where queries look (the positions in equation 3, and for boxes in appendix A.4).

  Around a point, offsets are in cells of each map; in a box, in halves of its sides over the number
  of points, so that the outermost points of the initial offsets lie on its border.

  Args:
    reference: `[batch, queries, levels, 2]`, x and y of points, or `[batch, queries, levels, 4]`,
      x and y of centres, width and height of boxes: fractions of each map's width and height.
    offsets: `[batch, queries, heads, levels, points, 2]`, x and y.
    sizes: rows and columns of each map.

  Returns:
    Fractions of the maps' sides, in the shape of `offsets`.
  """
  point, box = jnp.split(reference[:, :, None, :, None], [2], axis=-1)
  if box.shape[-1]:
    return point + offsets / offsets.shape[-2] * box / 2
  return point + offsets / np.array(sizes)[:, None, ::-1]


def deformable_attention(
  value: jax.Array, locations: jax.Array, scores: jax.Array, sizes: Sizes
) -> jax.Array:
  """Samples of all maps under one softmax (equation 3, without its projections).

  Args:
    value: `[batch, positions, heads, head_dim]`, the maps one after the other, row by row.
    locations: `[batch, queries, heads, levels, points, 2]`, fractions of the maps' sides.
    scores: `[batch, queries, heads, levels, points]`.
    sizes: rows and columns of each map.

  Returns:
    `[batch, queries, heads, head_dim]` in `value`'s dtype; what lies outside of a map counts as 0.
  """
  scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
  weights = nn.softmax(scores, axis=(-2, -1))
  return kernels.deformable_sampling(value, locations, weights, sizes)


def offset_init(num_heads: int, num_levels: int, num_points: int) -> nn.initializers.Initializer:
  """The initial offsets: a head looks in a direction of its own, its points ever farther."""

  def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    del key
    angles = np.arange(num_heads) * 2 * np.pi / num_heads
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    directions /= np.abs(directions).max(axis=-1, keepdims=True)
    steps = np.arange(1, num_points + 1)[:, None]
    offsets = np.broadcast_to(
      directions[:, None, None] * steps, (num_heads, num_levels, num_points, 2)
    )
    return jnp.asarray(offsets.reshape(shape), dtype)

  return init


class DeformableAttention(module.Module):
  """Multi-scale deformable attention with its projections (equation 3).

  Attributes:
    num_heads: must divide the width of the queries.
    num_points: at which a head looks on every map.

  Examples:
    >>> attention, sizes = DeformableAttention(num_heads=4), ((8, 8), (4, 4))
    >>> query, memory = jnp.ones((1, 5, 64)), jnp.ones((1, 80, 64))
    >>> reference = jnp.full((1, 5, 2, 2), 0.5)
    >>> init = lambda key: attention.init_with_output(key, query, reference, memory, sizes)
    >>> jax.eval_shape(init, jax.random.key(0))[0].shape
    (1, 5, 64)
  """

  num_heads: int = 8
  num_points: int = 4

  @nn.compact
  def __call__(
    self,
    query: jax.Array,
    reference: jax.Array,
    memory: jax.Array,
    sizes: Sizes,
    padding: jax.Array | None = None,
  ) -> jax.Array:
    """Looks at maps around the references of queries.

    Args:
      query: `[batch, queries, channels]`.
      reference: as in `sampling_locations`.
      memory: `[batch, positions, channels]`, the maps one after the other, row by row.
      sizes: rows and columns of each map.
      padding: bool `[batch, positions]`, True for cells that are none of the image: they count as
        0. None for none.

    Returns:
      `[batch, queries, channels]`.

    Raises:
      ValueError: the heads do not divide the channels, or the shapes do not go together.
    """
    channels, heads, levels = query.shape[-1], self.num_heads, len(sizes)
    if channels % heads:
      raise ValueError(f'num_heads={heads} does not divide the width {channels}')
    if reference.shape[2] != levels or reference.shape[-1] not in (2, 4):
      raise ValueError(
        f'reference must be [batch, queries, {levels} levels, 2 or 4], got {reference.shape}'
      )
    samples = heads, levels, self.num_points
    xavier, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros

    value = linear.Dense(
      (heads, channels // heads), kernel_init=xavier, name='value', **self.types
    )(memory)
    if padding is not None:
      value = jnp.where(padding[..., None, None], 0, value)
    value = parallel.constrain(value, 'batch', None, 'heads', None)
    offsets = linear.Dense(
      2 * int(np.prod(samples)),
      kernel_init=zeros,
      bias_init=offset_init(*samples),
      name='offsets',
      **self.types,
    )(query)
    scores = linear.Dense(int(np.prod(samples)), kernel_init=zeros, name='weights', **self.types)(
      query
    )
    offsets = offsets.reshape(*query.shape[:2], *samples, 2)
    # Positions are finer than what bfloat16 tells apart on a map of 100 cells.
    offsets = offsets.astype(jnp.promote_types(offsets.dtype, jnp.float32))
    out = deformable_attention(
      value,
      sampling_locations(reference, offsets, sizes),
      scores.reshape(*query.shape[:2], *samples),
      sizes,
    )
    return linear.Dense(channels, axis=(-2, -1), kernel_init=xavier, name='out', **self.types)(out)
