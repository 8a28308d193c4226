"""Bi-level routing attention: each region of queries attends to the regions most akin to it.

Source: BiFormer, Zhu et al. 2023 (arXiv 2303.08810), section 3.2; where paper and official code
differ, this follows the code (docs/biformer.md).

A map is cut into regions. Which regions a region attends to is decided by the mean query and the
mean key of each (region-to-region routing); tokens then attend to all tokens of the chosen regions
(token-to-token attention, `kernels.routed_attention`).
"""

from collections.abc import Sequence
import math
from typing import Literal, NamedTuple

from einops import rearrange
from flax import linen as nn
import jax
from jax import ad_checkpoint
import jax.numpy as jnp
import numpy as np

from crossattn_jax import kernels, parallel
from crossattn_jax.layers import depthwise_conv, initializers, linear, module

Grid = tuple[int, int]

# Of the chosen regions: a backward pass that chose again might choose others.
CHECKPOINT_NAME = 'routing'

ROUTINGS = ('hard', 'soft', 'soft_differentiable', 'soft_parametric')
PADDINGS = ('none', 'input', 'masked', 'qkv')
POOLINGS = ('none', 'average', 'max', 'adaptive_average', 'adaptive_max')


class Routing(NamedTuple):
  """Which regions attend to which.

  Attributes:
    regions: chosen key regions, int32 `[batch, regions, top_k]`, the most akin first.
    logits: affinity of every query region to every key region, `[batch, regions, regions]`.
    weights: softmax of the chosen logits, `[batch, regions, top_k]`.
    attention: weights of the tokens of the chosen regions, `[batch, heads, regions, tokens, top_k,
      key_tokens]`; None where they were not asked for.
  """

  regions: jax.Array
  logits: jax.Array
  weights: jax.Array
  attention: jax.Array | None = None


def partition(x: jax.Array, grid: Grid) -> jax.Array:
  """Cuts a map into regions (section 3.2, region partition).

  Args:
    x: `[batch, height, width, ...]`.
    grid: regions down and across; they must divide height and width.

  Returns:
    `[batch, regions, tokens, ...]`, regions and the tokens of a region row by row.

  Examples:
    >>> jax.eval_shape(lambda x: partition(x, (7, 7)), jnp.ones((1, 28, 28, 64))).shape
    (1, 49, 16, 64)
  """
  return rearrange(x, 'b (r h) (s w) ... -> b (r s) (h w) ...', r=grid[0], s=grid[1])


def merge(regions: jax.Array, grid: Grid, region_size: Grid) -> jax.Array:
  """The inverse of `partition`, for regions of `region_size` = (height, width)."""
  return rearrange(
    regions,
    'b (r s) (h w) ... -> b (r h) (s w) ...',
    r=grid[0],
    s=grid[1],
    h=region_size[0],
    w=region_size[1],
  )


def region_means(regions: jax.Array, visible: jax.Array | None = None) -> jax.Array:
  """Mean of the (visible) tokens of each region (section 3.2), in at least float32.

  Args:
    regions: `[batch, regions, tokens, channels]`.
    visible: bool `[regions, tokens]`; a region without visible tokens has mean 0.

  Returns:
    `[batch, regions, channels]`.
  """
  dtype = jnp.promote_types(regions.dtype, jnp.float32)
  if visible is None:
    return regions.mean(axis=2, dtype=dtype)
  count = jnp.maximum(visible.sum(axis=1), 1).astype(dtype)
  return jnp.where(visible[..., None], regions, 0).sum(axis=2, dtype=dtype) / count[:, None]


def route(
  query_means: jax.Array,
  key_means: jax.Array,
  top_k: int,
  *,
  scale: float = 1.0,
  selectable: jax.Array | None = None,
  regions: jax.Array | None = None,
) -> Routing:
  """Region-to-region routing (section 3.2), in full precision of at least float32.

  In half precision up to two thirds of the regions would choose others.

  Args:
    query_means: `[batch, regions, channels]`.
    key_means: `[batch, key_regions, channels]`.
    top_k: key regions that each query region chooses. Of equal ones the first is chosen.
    scale: of the logits.
    selectable: bool `[key_regions]`; the others are chosen last.
    regions: int `[batch, regions, top_k]` imposes the choice.
  """
  dtype = jnp.promote_types(query_means.dtype, jnp.float32)
  logits = jnp.einsum(
    'bqc,bkc->bqk', query_means.astype(dtype) * scale, key_means.astype(dtype), precision='highest'
  )
  if selectable is not None:
    logits = jnp.where(selectable, logits, -jnp.inf)
  if regions is None:
    regions = jax.lax.top_k(logits, top_k)[1]
  regions = ad_checkpoint.checkpoint_name(regions.astype(jnp.int32), CHECKPOINT_NAME)
  return Routing(regions, logits, nn.softmax(jnp.take_along_axis(logits, regions, axis=-1)))


def gather_regions(
  regions: jax.Array, routing: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
  """Copies to every query region the key regions that it chose (section 3.2), times weights.

  Args:
    regions: `[batch, key_regions, ...]`.
    routing: int `[batch, regions, top_k]`.
    weights: `[batch, regions, top_k]`.

  Returns:
    `[batch, regions, top_k, ...]`.
  """
  gathered = jax.vmap(lambda x, chosen: x[chosen])(regions, routing)
  if weights is None:
    return gathered
  weights = weights.reshape(weights.shape + (1,) * (gathered.ndim - weights.ndim))
  return gathered * weights.astype(gathered.dtype)


def routed_attention_weights(
  query: jax.Array,
  key: jax.Array,
  routing: jax.Array,
  *,
  scale: float,
  weights: jax.Array | None = None,
  key_mask: jax.Array | None = None,
) -> jax.Array:
  """The attention weights themselves, to look at and for soft routing.

  Args:
    query: `[batch, regions, tokens, heads, head_dim]`.
    key: `[batch, key_regions, key_tokens, heads, head_dim]`.
    routing: int `[batch, regions, top_k]`, or `[batch, heads, regions, top_k]`.
    scale: of the scores.
    weights: of soft routing, `[batch, regions, top_k]`: the chosen keys are multiplied by them.
    key_mask: bool `[key_regions, key_tokens]`, True where a key is visible.

  Returns:
    `[batch, heads, regions, tokens, top_k, key_tokens]`, in at least float32; sums to one over the
    last two.
  """
  dtype = jnp.promote_types(query.dtype, jnp.float32)

  def one_head(query, key, routing):
    gathered = gather_regions(key, routing, weights)
    scores = scale * jnp.einsum('brnd,brkmd->brnkm', query, gathered, preferred_element_type=dtype)
    if key_mask is not None:
      scores = jnp.where(key_mask[routing][:, :, None], scores, -jnp.inf)
    return nn.softmax(scores, axis=(-2, -1))

  per_head = 1 if routing.ndim == 4 else None
  return jax.vmap(one_head, in_axes=(3, 3, per_head), out_axes=1)(query, key, routing)


def soft_routed_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  routing: jax.Array,
  weights: jax.Array,
  *,
  scale: float,
  key_mask: jax.Array | None = None,
) -> jax.Array:
  """Routed attention to keys and values that are multiplied by their region's weight.

  Args:
    query: `[batch, regions, tokens, heads, head_dim]`.
    key: `[batch, key_regions, key_tokens, heads, head_dim]`.
    value: `[batch, key_regions, key_tokens, heads, width]`.
    routing: int `[batch, regions, top_k]`, or `[batch, heads, regions, top_k]`.
    weights: `[batch, regions, top_k]`, of the chosen regions.
    scale: of the scores.
    key_mask: bool `[key_regions, key_tokens]`, True where a key is visible.

  Returns:
    `[batch, regions, tokens, heads, width]` in `value`'s dtype.
  """
  attention = routed_attention_weights(
    query, key, routing, scale=scale, weights=weights, key_mask=key_mask
  )
  gathered = gather_regions(value, routing, weights)
  return jnp.einsum('bhrnkm,brkmhd->brnhd', attention.astype(value.dtype), gathered)


def regional_routing_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  region_graph: jax.Array,
  *,
  num_heads: int,
  region_size: Grid,
  key_region_size: Grid | None = None,
  scale: float | None = None,
  implementation: str = 'auto',
) -> jax.Array:
  """Routed attention between two maps along a given graph (the authors' function of this name).

  Both maps are padded with zeros at the bottom and the right to whole regions; padded keys take
  part in the softmax with score 0.

  Args:
    query: `[batch, height, width, channels]`.
    key: `[batch, key_height, key_width, channels]`.
    value: `[batch, key_height, key_width, value_channels]`.
    region_graph: key regions of every query region, int `[batch, regions, top_k]`, or `[batch,
      heads, regions, top_k]` for each head its own.
    num_heads: into which the channels are split.
    region_size: (height, width) of a region of the queries.
    key_region_size: of the keys and values; the same by default.
    scale: of the scores, head_dim^-0.5 by default.
    implementation: of `kernels.routed_attention`.

  Returns:
    `[batch, height, width, value_channels]` in `value`'s dtype.
  """
  height, width = query.shape[1:3]
  query, grid = partition_padded(query, region_size)
  key, _ = partition_padded(key, key_region_size or region_size)
  value, _ = partition_padded(value, key_region_size or region_size)
  out = kernels.routed_attention(
    query,
    key,
    value,
    region_graph.astype(jnp.int32),
    num_heads=num_heads,
    scale=scale,
    implementation=implementation,
  )
  return merge(out, grid, region_size)[:, :height, :width]


def partition_padded(x: jax.Array, size: Grid) -> tuple[jax.Array, Grid]:
  """Pads a map to whole regions of this size and partitions it; also returns the grid."""
  grid = (-(-x.shape[1] // size[0]), -(-x.shape[2] // size[1]))
  return partition(pad_map(x, (grid[0] * size[0], grid[1] * size[1])), grid), grid


def pad_map(x: jax.Array, size: Grid) -> jax.Array:
  """Pads `[batch, height, width, ...]` with zeros at the bottom and the right."""
  margins = [(0, 0), (0, size[0] - x.shape[1]), (0, size[1] - x.shape[2])]
  return jnp.pad(x, margins + [(0, 0)] * (x.ndim - 3))


def pool_regions(
  regions: jax.Array,
  region_size: Grid,
  mode: Literal['none', 'average', 'max', 'adaptive_average', 'adaptive_max'],
  size: int,
) -> jax.Array:
  """Downsamples the tokens of each region, for keys and values.

  Args:
    regions: `[batch, regions, tokens, ...]`.
    region_size: (height, width) of a region.
    mode: 'average' and 'max' pool windows of `size` x `size`, what is left over at the bottom and
      the right is dropped; the adaptive ones give `size` x `size` tokens, from bins that overlap
      where `size` does not divide the region.
    size: see `mode`.

  Returns:
    `[batch, regions, fewer tokens, ...]`.
  """
  if mode == 'none':
    return regions
  x = rearrange(regions, 'b r (h w) ... -> b r h w ...', h=region_size[0])
  reduce = jnp.mean if mode.endswith('average') else jnp.max
  if mode.startswith('adaptive'):
    for axis, length in ((2, region_size[0]), (3, region_size[1])):
      bins = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
      pooled = [
        reduce(jax.lax.slice_in_dim(x, start, end, axis=axis), axis=axis) for start, end in bins
      ]
      x = jnp.stack(pooled, axis)
  else:
    rows, columns = region_size[0] // size, region_size[1] // size
    x = x[:, :, : rows * size, : columns * size]
    x = x.reshape(*x.shape[:2], rows, size, columns, size, *x.shape[4:])
    x = reduce(x, axis=(3, 5))
  return rearrange(x, 'b r h w ... -> b r (h w) ...')


class RegionRouter(nn.Module):
  """`route` with what may be learnt of it.

  Attributes:
    top_k: key regions that each query region chooses.
    scale: of the logits.
    differentiable: whether gradients reach the means.
    parametric: whether one linear map is applied to the means of both kinds.
    kernel_init: of it.
    bias_init: of it.
    param_dtype: of it.
  """

  top_k: int
  scale: float
  differentiable: bool = False
  parametric: bool = False
  kernel_init: nn.initializers.Initializer = initializers.linear
  bias_init: nn.initializers.Initializer = nn.initializers.zeros
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    query_means: jax.Array,
    key_means: jax.Array,
    selectable: jax.Array | None = None,
    regions: jax.Array | None = None,
  ) -> Routing:
    """See `route`."""
    means = query_means, key_means
    if not self.differentiable:
      means = jax.lax.stop_gradient(means)
    if self.parametric:
      embedding = nn.Dense(
        query_means.shape[-1],
        kernel_init=self.kernel_init,
        bias_init=self.bias_init,
        dtype=query_means.dtype,
        param_dtype=self.param_dtype,
        precision='highest',
        name='embedding',
      )
      means = tuple(embedding(part) for part in means)
    return route(*means, self.top_k, scale=self.scale, selectable=selectable, regions=regions)


class BiLevelRoutingAttention(module.Module):
  """Bi-level routing attention with a local enhancement of the values (section 3.2; LePE).

  Attributes:
    num_heads: must divide the channels and `qk_dim`.
    regions_per_side: S of the paper; the map is cut into S x S regions.
    top_k: regions that each region attends to.
    qk_dim: width of queries and keys, all heads together; the channels by default.
    scale: of scores and routing logits; qk_dim^-0.5 by default, the width of all heads.
    lepe_side: of the depthwise convolution of the values, which is added to the result; 0: none.
    routing: 'hard' as published. 'soft' multiplies keys and values by the softmax of the chosen
      routing logits; 'soft_differentiable' lets gradients through it; 'soft_parametric' also routes
      by a learnt linear map of the means.
    padding: what happens to a map that S does not divide. 'none' refuses it. The others add zeros
      at the bottom and the right: 'input' before the projection, so that padded tokens have
      queries, keys and values and take part in everything (the official `auto_pad`); 'qkv' after
      the projection, with regions of the size rounded down, so that there may be more than S x S of
      them, and means over the real tokens (the official NCHW form); 'masked' lets nothing depend on
      padding.
    kv_pooling: downsampling of each region's keys and values; see `pool_regions`.
    kv_pool_size: of it.
    output_projection: whether a linear map follows.
    implementation: of `kernels.routed_attention`, for hard routing.
    kernel_init: of the projections.
    bias_init: of the projections.
    dtype: of the computation; routing is computed in at least float32.

  Examples:
    >>> attention = BiLevelRoutingAttention(num_heads=2, top_k=4)
    >>> x = jnp.ones((1, 28, 28, 64))
    >>> jax.eval_shape(attention.init_with_output, jax.random.key(0), x)[0][0].shape
    (1, 28, 28, 64)
  """

  num_heads: int
  regions_per_side: int = 7
  top_k: int = 4
  qk_dim: int | None = None
  scale: float | None = None
  lepe_side: int = 5
  routing: Literal['hard', 'soft', 'soft_differentiable', 'soft_parametric'] = 'hard'
  padding: Literal['none', 'input', 'masked', 'qkv'] = 'none'
  kv_pooling: Literal['none', 'average', 'max', 'adaptive_average', 'adaptive_max'] = 'none'
  kv_pool_size: int = 1
  output_projection: bool = True
  implementation: str = 'auto'
  kernel_init: nn.initializers.Initializer = initializers.linear
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(
    self, x: jax.Array, routing: jax.Array | None = None, with_attention: bool = False
  ) -> tuple[jax.Array, Routing]:
    """Attends within a map.

    Args:
      x: `[batch, height, width, channels]`.
      routing: int `[batch, regions, top_k]` imposes which regions attend to which.
      with_attention: whether to return the attention weights too, for pictures.

    Returns:
      The result in `x`'s shape, and the routing.

    Raises:
      ValueError: fields and shapes that do not go together.
    """
    channels, qk_dim = x.shape[-1], self.qk_dim or x.shape[-1]
    self._check(channels, qk_dim)
    size = x.shape[1:3]
    grid, region_size = region_grid(size, self.regions_per_side, self.padding)
    if self.top_k > math.prod(grid):
      raise ValueError(f'top_k={self.top_k} regions of {grid[0]} x {grid[1]} do not exist')
    padded = (grid[0] * region_size[0], grid[1] * region_size[1])
    scale = self.scale or qk_dim**-0.5

    tokens = partition(pad_map(x, padded), grid)
    query, key, value = self._project(tokens, channels, qk_dim)
    visible = key_mask = None
    if padded != size and self.padding != 'input':
      visible = jnp.asarray(_real_tokens(size, grid, region_size))
      query, key, value = (jnp.where(visible[..., None], part, 0) for part in (query, key, value))
      if self.padding == 'masked':
        key_mask = visible
    chosen = RegionRouter(
      self.top_k,
      scale,
      differentiable=self.routing in ('soft_differentiable', 'soft_parametric'),
      parametric=self.routing == 'soft_parametric',
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      param_dtype=self.param_dtype,
      name='router',
    )(
      *(region_means(part, visible) for part in (query, key)),
      selectable=key_mask if key_mask is None else key_mask.any(axis=1),
      regions=routing,
    )

    keys, values = (
      pool_regions(part, region_size, self.kv_pooling, self.kv_pool_size) for part in (key, value)
    )
    if self.routing == 'hard':
      out = kernels.routed_attention(
        query,
        keys,
        values,
        chosen.regions,
        num_heads=self.num_heads,
        scale=scale,
        key_mask=key_mask if key_mask is None else jnp.broadcast_to(key_mask, keys.shape[:3]),
        # Parameters do not depend on it, and kernels take long to trace.
        implementation='reference' if self.is_initializing() else self.implementation,
      )
    else:
      out = soft_routed_attention(
        *(linear.split_heads(part, self.num_heads) for part in (query, keys, values)),
        chosen.regions,
        chosen.weights,
        scale=scale,
        key_mask=key_mask,
      )
      out = out.reshape(*out.shape[:3], channels)
    if with_attention:
      attention = routed_attention_weights(
        *(linear.split_heads(part, self.num_heads) for part in (query, keys)),
        chosen.regions,
        scale=scale,
        weights=None if self.routing == 'hard' else chosen.weights,
        key_mask=key_mask,
      )
      chosen = chosen._replace(attention=attention)
    out = merge(out, grid, region_size)
    if self.lepe_side:
      # Zeros beyond the real tokens are what the convolution itself would add.
      out += depthwise_conv.DepthwiseConv(self.lepe_side, name='lepe', **self.types)(
        merge(value, grid, region_size)
      )
    out = out[:, : size[0], : size[1]]
    if self.output_projection:
      out = linear.split_heads(out, self.num_heads)
      out = linear.Dense(channels, axis=(-2, -1), name='out', **self._linear())(out)
    return out, chosen

  def _project(
    self, tokens: jax.Array, channels: int, qk_dim: int
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values `[batch, regions, tokens, channels]`, from one layer."""
    if qk_dim == channels:
      project = linear.Projections(3, self.num_heads, channels, name='qkv', **self._linear())
      parts = project(tokens)
    else:
      qkv = linear.Dense(2 * qk_dim + channels, name='qkv', **self._linear())(tokens)
      parts = jnp.split(qkv, [qk_dim, 2 * qk_dim], axis=-1)
    heads = ('heads', self.num_heads)
    return tuple(parallel.constrain(part, 'batch', None, None, heads) for part in parts)

  def _linear(self) -> dict:
    return {'kernel_init': self.kernel_init, 'bias_init': self.bias_init, **self.types}

  def _check(self, channels: int, qk_dim: int) -> None:
    for name, width in (('channels', channels), ('qk_dim', qk_dim)):
      if width % self.num_heads:
        raise ValueError(f'num_heads={self.num_heads} does not divide {name}={width}')
    for field, choices in (('routing', ROUTINGS), ('padding', PADDINGS), ('kv_pooling', POOLINGS)):
      if getattr(self, field) not in choices:
        raise ValueError(f'{field}={getattr(self, field)!r} is not one of {", ".join(choices)}')
    if self.padding == 'masked' and self.kv_pooling != 'none':
      raise ValueError(
        f"padding='masked' hides tokens, which kv_pooling={self.kv_pooling!r} would mix; set one "
        "of them to 'none'"
      )


def region_grid(size: Sequence[int], regions_per_side: int, padding: str) -> tuple[Grid, Grid]:
  """How a map is cut into regions.

  Args:
    size: (height, width) of the map.
    regions_per_side: S of the paper.
    padding: see `BiLevelRoutingAttention`.

  Returns:
    Regions down and across, and (height, width) of a region.

  Raises:
    ValueError: the map cannot be cut; says what would do.
  """
  height, width = size
  whole = height % regions_per_side == 0 and width % regions_per_side == 0
  if padding == 'none' and not whole:
    raise ValueError(
      f'a map of {height} x {width} does not divide into {regions_per_side} x {regions_per_side} '
      "regions; set padding='input', 'qkv' or 'masked', or change the size or the regions"
    )
  if padding == 'qkv':
    if min(height, width) < regions_per_side:
      raise ValueError(
        f'a map of {height} x {width} is smaller than {regions_per_side} x {regions_per_side} '
        "regions; padding='input' or 'masked' takes it"
      )
    region_size = height // regions_per_side, width // regions_per_side
    return (-(-height // region_size[0]), -(-width // region_size[1])), region_size
  region_size = -(-height // regions_per_side), -(-width // regions_per_side)
  return (regions_per_side, regions_per_side), region_size


def _real_tokens(size: Grid, grid: Grid, region_size: Grid) -> np.ndarray:
  """Which tokens of a padded map are real, bool `[regions, tokens]`."""
  rows = np.arange(grid[0] * region_size[0]) < size[0]
  columns = np.arange(grid[1] * region_size[1]) < size[1]
  return np.asarray(partition((rows[:, None] & columns)[None], grid)[0])
