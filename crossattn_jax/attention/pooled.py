"""Pooling attention: queries, keys and values are pooled as maps before they meet.

Source: MViT, Fan et al. 2021 (arXiv 2104.11227), section 3.1, and facebookresearch/mvit.

Tokens are a map's positions row by row. A class token in front of them has no place in the map:
pooling passes it on.
"""

import math

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import kernels, parallel
from crossattn_jax.layers import initializers, linear, module

Grid = tuple[int, int]

_SIDE = 3  # of every pooling window


def pooled_grid(grid: Grid, stride: int) -> Grid:
  """The grid that pooling with a stride leaves."""
  return -(-grid[0] // stride), -(-grid[1] // stride)


def split_tokens(tokens: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array]:
  """Splits `[batch, extra + height * width, ...]` into the class token, if any, and the map.

  Returns:
    `[batch, extra, ...]`, extra being 0 or 1, and `[batch, height, width, ...]`.

  Raises:
    ValueError: there are more or fewer tokens than that.
  """
  extra = tokens.shape[1] - math.prod(grid)
  if extra not in (0, 1):
    raise ValueError(
      f'{tokens.shape[1]} tokens are no grid of {grid[0]} x {grid[1]}, nor that and a class token'
    )
  return tokens[:, :extra], rearrange(tokens[:, extra:], 'b (y x) ... -> b y x ...', y=grid[0])


def join_tokens(extra: jax.Array, image: jax.Array) -> jax.Array:
  """The inverse of `split_tokens`."""
  tokens = rearrange(image, 'b y x ... -> b (y x) ...')
  return jnp.concatenate([extra, tokens], axis=1) if extra.shape[1] else tokens


def convolve_heads(image: jax.Array, kernel: jax.Array, stride: int | Grid = 1) -> jax.Array:
  """Pools the map of each head (section 3.1) by a depthwise convolution of shared filters.

  Args:
    image: `[batch, height, width, heads * head_dim]`, head by head.
    kernel: `[side, side, 1, head_dim]`, side odd, `image`'s dtype.
    stride: in both directions, or (of rows, of columns); zeros surround the map.

  Returns:
    `[batch, ceil(height / stride), ceil(width / stride), heads * head_dim]`.
  """
  heads = image.shape[-1] // kernel.shape[-1]
  kernel = jnp.tile(kernel, heads)
  if isinstance(stride, int):
    return kernels.depthwise_convolution(image, kernel, stride)
  return kernels.depthwise_convolution(image, kernel)[:, :: stride[0], :: stride[1]]


class PoolHeads(module.Module):
  """`convolve_heads` and a layer norm over each head's channels, extra tokens included.

  Attributes:
    num_heads: into which the channels are split.
    stride: of the convolution.
  """

  num_heads: int
  stride: int | Grid = 1

  @nn.compact
  def __call__(self, extra: jax.Array, image: jax.Array) -> jax.Array:
    """Maps a map and tokens beside it to tokens, fewer ones.

    Args:
      extra: `[batch, extra, heads * head_dim]`.
      image: `[batch, height, width, heads * head_dim]`.

    Returns:
      `[batch, extra + places of the smaller map, heads, head_dim]`.
    """
    init, head_dim = initializers.torch_convolution(_SIDE**2), image.shape[-1] // self.num_heads
    kernel = self.param('kernel', init, (_SIDE, _SIDE, 1, head_dim), self.param_dtype)
    extra, image, kernel = nn.dtypes.promote_dtype(extra, image, kernel, dtype=self.dtype)
    pooled = join_tokens(extra, convolve_heads(image, kernel, self.stride))
    return self.layer_norm('norm')(rearrange(pooled, 'b n (h d) -> b n h d', d=head_dim))


class PooledAttention(module.Module):
  """Multi-head self-attention over a map with pooled keys and values (section 3.1; MHPA).

  Attributes:
    num_heads: must divide the channels of the result.
    stride: of the pooling of keys and values. Stride 1 convolves too.
    query_stride: of the pooling of queries, which shrinks the map; None leaves them alone.
    channels: of the result; those of the input by default.
    kernel_init: of both projections.

  Examples:
    >>> attention, x = PooledAttention(num_heads=2, stride=4), jnp.ones((1, 16, 16, 64))
    >>> jax.eval_shape(attention.init_with_output, jax.random.key(0), x)[0].shape
    (1, 16, 16, 64)
  """

  num_heads: int
  stride: int | Grid = 2
  query_stride: int | None = None
  channels: int | None = None
  kernel_init: nn.initializers.Initializer = initializers.linear

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
    channels = x.shape[-1] if self.channels is None else self.channels
    project = linear.Projections(
      3, self.num_heads, channels, kernel_init=self.kernel_init, name='qkv', **self.types
    )
    strides = {'query': self.query_stride, 'key': self.stride, 'value': self.stride}
    pooled = [name for name, stride in strides.items() if stride is not None]
    first = len(strides) - len(pooled)
    # Tokens are cut once, before they are projected, rather than queries, keys and values.
    parts = zip(*(project(part, slice(first, 3)) for part in split_tokens(x, grid)), strict=True)
    heads = {
      name: PoolHeads(self.num_heads, strides[name], name=f'pool_{name}', **self.types)(*part)
      for name, part in zip(pooled, parts, strict=True)
    }
    if first:
      heads['query'] = linear.split_heads(project(x, slice(first))[0], self.num_heads)
    return linear.Dense(
      channels, axis=(-2, -1), kernel_init=self.kernel_init, name='out', **self.types
    )(attend(**heads))


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Dot-product attention of `[batch, tokens, heads, head_dim]` each, under the ambient mesh."""
  query = parallel.constrain(query, 'batch', 'tokens', 'heads', None)
  key, value = (parallel.constrain(part, 'batch', None, 'heads', None) for part in (key, value))
  return kernels.dot_product_attention(query, key, value)
