"""Pooling attention: queries, keys and values are pooled as maps before they meet.

Sources: MViT, Fan et al. 2021 (arXiv 2104.11227), section 3.1, for one map; MMViT, Liu et al. 2023
(arXiv 2305.00104), for the attention across the maps of several views. Details are those of
facebookresearch/mvit; docs/mmvit.md says what the papers leave open.

Tokens are a map's positions row by row. Further tokens in front of them, such as a class token,
have no place in the map: pooling passes them on.
"""

from collections.abc import Sequence
import math

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.attention import self_attention
from crossattn_jax.layers import depthwise_conv, initializers, linear

Grid = tuple[int, int]

_SIDE = 3  # of every pooling window


def pooled_grid(grid: Grid, stride: int) -> Grid:
  """The grid that pooling with a stride leaves."""
  return -(-grid[0] // stride), -(-grid[1] // stride)


def split_tokens(tokens: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array]:
  """Splits `[batch, extra + height * width, ...]` into the extra tokens and the map.

  Returns:
    `[batch, extra, ...]` and `[batch, height, width, ...]`.

  Raises:
    ValueError: there are fewer tokens than places in the grid.
  """
  extra = tokens.shape[1] - math.prod(grid)
  if extra < 0:
    raise ValueError(f'{tokens.shape[1]} tokens do not fill a grid of {grid[0]} x {grid[1]}')
  return tokens[:, :extra], rearrange(tokens[:, extra:], 'b (y x) ... -> b y x ...', y=grid[0])


def join_tokens(extra: jax.Array, image: jax.Array) -> jax.Array:
  """The inverse of `split_tokens`."""
  tokens = rearrange(image, 'b y x ... -> b (y x) ...')
  return jnp.concatenate([extra, tokens], axis=1) if extra.shape[1] else tokens


def convolve_heads(tokens: jax.Array, kernel: jax.Array, grid: Grid, stride: int = 1) -> jax.Array:
  """Pools the map of each head by a depthwise convolution, whose filters all heads share.

  Args:
    tokens: `[batch, extra + height * width, heads, head_dim]`.
    kernel: `[side, side, 1, head_dim]`, side odd, `tokens`' dtype.
    grid: (height, width).
    stride: in both directions; zeros surround the map.

  Returns:
    `[batch, extra + ceil(height / stride) * ceil(width / stride), heads, head_dim]`.
  """
  heads = tokens.shape[2]
  extra, image = split_tokens(tokens, grid)
  pooled = depthwise_conv.depthwise_convolution(
    rearrange(image, 'b y x h d -> b y x (h d)'), jnp.tile(kernel, heads), stride
  )
  return join_tokens(extra, rearrange(pooled, 'b y x (h d) -> b y x h d', h=heads))


class PoolHeads(nn.Module):
  """`convolve_heads` and a layer norm over each head's channels, extra tokens included.

  Attributes:
    stride: of the convolution.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  stride: int = 1
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array, grid: Grid) -> jax.Array:
    """Maps `[batch, extra + height * width, heads, head_dim]` to fewer tokens."""
    init = initializers.torch_convolution(_SIDE**2)
    kernel = self.param('kernel', init, (_SIDE, _SIDE, 1, tokens.shape[-1]), self.param_dtype)
    tokens, kernel = nn.dtypes.promote_dtype(tokens, kernel, dtype=self.dtype)
    pooled = convolve_heads(tokens, kernel, grid, self.stride)
    return nn.LayerNorm(
      epsilon=1e-6,
      use_fast_variance=False,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name='norm',
    )(pooled)


class PooledAttention(nn.Module):
  """Multi-head self-attention over a map with pooled keys and values.

  Attributes:
    num_heads: must divide the channels of the result.
    stride: of the pooling of keys and values. Stride 1 convolves too.
    query_stride: of the pooling of queries, which shrinks the map; None leaves them alone.
    channels: of the result; those of the input by default.
    kernel_init: of both projections.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  num_heads: int
  stride: int = 2
  query_stride: int | None = None
  channels: int | None = None
  kernel_init: nn.initializers.Initializer = initializers.linear
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False, grid: Grid | None = None) -> jax.Array:
    """Attends over a map.

    Args:
      x: a map `[batch, height, width, width_in]`, or tokens `[batch, extra + height * width,
        width_in]` and their grid.
      train: changes nothing.
      grid: (height, width) of tokens.

    Returns:
      A map or tokens, as x is; of the same size unless queries are pooled.
    """
    del train
    if x.ndim == 4:
      grid = x.shape[1:3]
      out = self._attend(rearrange(x, 'b y x c -> b (y x) c'), grid)
      height = pooled_grid(grid, self.query_stride or 1)[0]
      return rearrange(out, 'b (y x) c -> b y x c', y=height)
    if grid is None:
      raise ValueError('tokens need their grid (height, width)')
    return self._attend(x, grid)

  def _attend(self, x: jax.Array, grid: Grid) -> jax.Array:
    types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    channels = x.shape[-1] if self.channels is None else self.channels
    query, key, value = project_heads(x, self.num_heads, channels, self.kernel_init, **types)
    if self.query_stride is not None:
      query = PoolHeads(self.query_stride, name='pool_query', **types)(query, grid)
    key = PoolHeads(self.stride, name='pool_key', **types)(key, grid)
    value = PoolHeads(self.stride, name='pool_value', **types)(value, grid)
    out = attend(query, key, value)
    return merge_heads(out, channels, self.kernel_init, **types)


class CrossViewAttention(nn.Module):
  """Self-attention over the tokens of several views at once, whose keys are pooled view by view.

  Attributes:
    num_heads: must divide the channels.
    strides: of the pooling of keys and values, per view; None leaves them as they are.
    kernel_init: of the fused projection.
    out_init: of the projection out of the heads.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  num_heads: int
  strides: tuple[int, ...] | None
  kernel_init: nn.initializers.Initializer = initializers.linear
  out_init: nn.initializers.Initializer = initializers.linear
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, grids: Sequence[Grid]) -> tuple[jax.Array, jax.Array]:
    """Attends over all views.

    Args:
      x: `[batch, extra + positions of all views, channels]`; the extra tokens belong to the first.
      grids: (height, width) of each view.

    Returns:
      The same shape, and the weights of the first token: `[batch, heads, keys]`, in at least
      float32; keys are the extra tokens, then the pooled positions of each view.
    """
    types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    query, key, value = project_heads(x, self.num_heads, x.shape[-1], self.kernel_init, **types)
    if self.strides is not None:

      def pool(name: str, tokens: jax.Array) -> jax.Array:
        views = zip(split_views(tokens, grids), grids, self.strides, strict=True)
        pooled = [
          PoolHeads(stride, name=f'pool_{name}_{v}', **types)(view, grid)
          for v, (view, grid, stride) in enumerate(views)
        ]
        return jnp.concatenate(pooled, axis=1)

      key, value = pool('key', key), pool('value', value)
    out = attend(query, key, value)
    return merge_heads(out, x.shape[-1], self.out_init, **types), _weights(query[:, 0], key)


def split_views(x: jax.Array, grids: Sequence[Grid]) -> list[jax.Array]:
  """Splits `[batch, extra + positions of all views, ...]` by view, extra tokens with the first."""
  ends = x.shape[1] - sum(map(math.prod, grids))
  views, start = [], 0
  for grid in grids:
    ends += math.prod(grid)
    views.append(x[:, start:ends])
    start = ends
  return views


def project_heads(
  x: jax.Array,
  num_heads: int,
  channels: int,
  kernel_init: nn.initializers.Initializer,
  **types: jnp.dtype | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Query, key and value by the fused projection 'qkv' of a module: `[batch, tokens, heads, d]`."""
  if channels % num_heads:
    raise ValueError(f'num_heads={num_heads} does not divide the width {channels}')
  qkv = linear.Dense(
    (3, num_heads, channels // num_heads),
    kernel_init=kernel_init,
    name='qkv',
    **types,
  )(x)
  # The gradient of a split is one concatenation, that of three slices a sum.
  return tuple(part.squeeze(2) for part in jnp.split(qkv, 3, axis=2))


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Dot-product attention, `[batch, tokens, heads, head_dim]` each."""
  query = parallel.constrain(query, 'batch', 'tokens', 'heads', None)
  key, value = (parallel.constrain(part, 'batch', None, 'heads', None) for part in (key, value))
  return self_attention.dot_product_attention(query, key, value)


def _weights(query: jax.Array, key: jax.Array) -> jax.Array:
  """The attention weights of one token, `[batch, heads, head_dim]`: `[batch, heads, keys]`."""
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum('bhd,bkhd->bhk', query, key, preferred_element_type=dtype)
  return nn.softmax(scores * query.shape[-1] ** -0.5)


def merge_heads(
  x: jax.Array,
  channels: int,
  kernel_init: nn.initializers.Initializer,
  **types: jnp.dtype | None,
) -> jax.Array:
  """The projection 'out' of a module, from `[batch, tokens, heads, head_dim]`."""
  return linear.Dense(
    channels,
    axis=(-2, -1),
    kernel_init=kernel_init,
    name='out',
    **types,
  )(x)
