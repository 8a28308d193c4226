"""Fusions of two streams' maps at one level of a pyramid: by a transformer, a convolution or a sum.

Source: ICAFusion, Shen et al. 2024 (arXiv 2308.07504), whose module DMFF (dual cross-modal feature
fusion) is SFS, ICFE and NIN in turn. All fusions map two maps of one shape to a third one.
"""

from collections.abc import Sequence
import math
from typing import Literal

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.attention import cross_modal
from crossattn_jax.layers import convolution, module, pooling, resize
from crossattn_jax.models.backbones import csp_darknet

PoolMix = Literal['free', 'convex']
Upsampling = Literal['nearest', 'bilinear']
POOL_MIXES = ('free', 'convex')
UPSAMPLINGS = ('nearest', 'bilinear')


class SpatialShrinking(module.Module):
  """Average and maximum over the windows of a grid, in a learnt mix (module SFS).

  Windows are `layers.pooling.equal_windows`. Along an axis that is no longer than the grid, pixels
  stay as they are.

  Attributes:
    grid: rows and columns of the result.
    mix: 'free' learns a weight of the average and one of the maximum (the code), 'convex' one in
      [0, 1] for the average, the maximum having the rest (the paper). Both start at 1/2.
  """

  grid: tuple[int, int]
  mix: PoolMix = 'free'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to `[batch, *grid, channels]`, or less on less.

    Raises:
      ValueError: unknown mix.
    """
    if self.mix not in POOL_MIXES:
      raise ValueError(f'mix={self.mix!r} is not one of {", ".join(POOL_MIXES)}')
    if self.mix == 'free':
      half = nn.initializers.constant(0.5)
      weights = [self.param(name, half, (), self.param_dtype) for name in ('average', 'maximum')]
    else:
      share = nn.sigmoid(self.param('logit', nn.initializers.zeros, (), self.param_dtype))
      weights = [share, 1 - share]
    x, *weights = nn.dtypes.promote_dtype(x, *weights, dtype=self.dtype)
    size = smaller_size(x.shape[1:3], self.grid)
    average = pooling.equal_window_average_pool(x, size)
    maximum = pooling.equal_window_max_pool(x, size)
    return weights[0] * average + weights[1] * maximum


def smaller_size(size: Sequence[int], grid: Sequence[int]) -> tuple[int, int]:
  """The smaller height and the smaller width of two sizes."""
  return min(size[0], grid[0]), min(size[1], grid[1])


class TransformerFusion(module.Module):
  """Fusion by iterative dual cross-attention on a coarse grid of tokens (module DMFF).

  Both maps shrink to the grid (SFS), their tokens get learnt position embeddings and go through
  the blocks (ICFE). Grown to their old size again they are added to the maps, which one 1 x 1
  convolution joins (NIN).

  Attributes:
    grid: rows and columns of tokens. On smaller maps there are fewer, for which the position
      embeddings are resized; the authors' code cannot take them.
    num_heads: of the attention; must divide the channels.
    mlp_ratio: hidden width of the MLPs per channel.
    depth: blocks with parameters of their own.
    loops: iterations of each block with the same parameters.
    attention_drop_rate: dropout of the attention weights.
    drop_rate: dropout of what attention and MLPs return.
    pool_mix: see `SpatialShrinking.mix`.
    upsampling: 'nearest' or 'bilinear', how the tokens' maps grow.
    train_upsampling: the same in training, which differs in the authors' code.
    unused_parameters: see `IterativeCrossModalBlock`.
  """

  grid: tuple[int, int]
  num_heads: int = 8
  mlp_ratio: float = 4
  depth: int = 1
  loops: int = 1
  attention_drop_rate: float = 0.1
  drop_rate: float = 0.1
  pool_mix: PoolMix = 'free'
  upsampling: Upsampling = 'bilinear'
  train_upsampling: Upsampling = 'nearest'
  unused_parameters: bool = False

  @nn.compact
  def __call__(self, rgb: jax.Array, thermal: jax.Array, train: bool = False) -> jax.Array:
    """Maps two `[batch, height, width, channels]` to one.

    Raises:
      ValueError: unknown upsampling; see also `SpatialShrinking`, `IterativeCrossModalBlock`.
    """
    for name in ('upsampling', 'train_upsampling'):
      if (method := getattr(self, name)) not in UPSAMPLINGS:
        raise ValueError(f'{name}={method!r} is not one of {", ".join(UPSAMPLINGS)}')
    channels, size = rgb.shape[-1], rgb.shape[1:3]
    grid = smaller_size(size, self.grid)
    maps = rgb, thermal
    tokens = []
    for modality, x in zip(cross_modal.MODALITIES, maps, strict=True):
      shape = (math.prod(self.grid), channels)
      positions = self.param(
        f'positions_{modality}', nn.initializers.zeros, shape, self.param_dtype
      )
      positions = resize.resize_position_embedding(positions, self.grid, grid)
      shrink = SpatialShrinking(
        self.grid, self.pool_mix, name=f'shrinking_{modality}', **self.types
      )
      x = rearrange(shrink(x), 'b y x c -> b (y x) c')
      x, positions = nn.dtypes.promote_dtype(x, positions, dtype=self.dtype)
      tokens.append(parallel.constrain(x + positions, 'batch', 'tokens', 'channels'))
    for i in range(self.depth):
      tokens = cross_modal.IterativeCrossModalBlock(
        self.num_heads,
        self.mlp_ratio,
        self.loops,
        self.attention_drop_rate,
        self.drop_rate,
        self.unused_parameters,
        name=f'block_{i}',
        **self.types,
      )(*tokens, train)
    method = self.train_upsampling if train else self.upsampling
    grown = [
      x + _grow(rearrange(new, 'b (y x) c -> b y x c', y=grid[0]), size, method)
      for x, new in zip(maps, tokens, strict=True)
    ]
    joined = jnp.concatenate(grown, axis=-1)
    joined = csp_darknet.ConvUnit(channels, name='join', **self.types)(joined, train)
    return parallel.constrain(joined, 'batch', 'height', 'width', 'channels')


def _grow(x: jax.Array, size: Sequence[int], method: Upsampling) -> jax.Array:
  if method == 'nearest':
    return resize.upsample_nearest(x, size)
  return resize.resize(x, size, method)


class ConvolutionFusion(module.Module):
  """Fusion by one convolution of both maps and SiLU, NiN in the authors' code.

  Attributes:
    channels: of the result; those of one map where None.
    side: of the kernel.
    stride: in both directions.
    padding: pixels around the maps; half of the kernel where None.
  """

  channels: int | None = None
  side: int = 1
  stride: int = 1
  padding: int | None = None

  @nn.compact
  def __call__(self, rgb: jax.Array, thermal: jax.Array, train: bool = False) -> jax.Array:
    """Maps two `[batch, height, width, channels]` to one; `train` has no effect."""
    del train
    x = jnp.concatenate([rgb, thermal], axis=-1)
    conv = convolution.convolution(
      x.shape[-1],
      self.channels or rgb.shape[-1],
      self.side,
      stride=self.stride,
      padding=self.side // 2 if self.padding is None else self.padding,
      use_bias=False,
      name='conv',
      **self.types,
    )
    return parallel.constrain(nn.silu(conv(x)), 'batch', 'height', 'width', 'channels')


class SumFusion(module.Module):
  """Fusion by a weighted sum, `weight * rgb + (1 - weight) * thermal`.

  Attributes:
    weight: of RGB. The authors' configurations of this baseline hand over the number of channels,
      256 * rgb - 255 * thermal; 'channels' is that.
  """

  weight: float | Literal['channels'] = 0.5

  @nn.compact
  def __call__(self, rgb: jax.Array, thermal: jax.Array, train: bool = False) -> jax.Array:
    """Maps two `[batch, height, width, channels]` to one; `train` has no effect."""
    del train
    weight = rgb.shape[-1] if self.weight == 'channels' else self.weight
    rgb, thermal = nn.dtypes.promote_dtype(rgb, thermal, dtype=self.dtype)
    return weight * rgb + (1 - weight) * thermal
