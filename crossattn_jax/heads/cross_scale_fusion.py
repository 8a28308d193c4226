"""Cross-scale fusion: from the coarsest map on, each is added to the one above it, and refined.

Source: the encoder-free fusion of the extended ViDT, Song et al. 2022 (arXiv 2204.07962), in the
form of its code; the units are RefineNet's, Lin et al. 2017 (arXiv 1611.06612).
"""

from collections.abc import Sequence

from flax import linen as nn
import jax

from crossattn_jax import parallel
from crossattn_jax.layers import (
  batch_norm,
  convolution,
  linear,
  module,
  projection_norm,
  resize,
)


class ResidualUnit(module.Module):
  """Adds what three convolutions say, each of what is positive, the middle ones narrow.

  Attributes:
    width: of the first two convolutions.
    norm: whether a batch norm, and no bias, follows each.
  """

  width: int = 64
  norm: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    y = x
    for i, (channels, side) in enumerate(((self.width, 1), (self.width, 3), (x.shape[-1], 1)), 1):
      y = convolution.convolution(
        y.shape[-1],
        channels,
        side,
        padding=side // 2,
        use_bias=not self.norm,
        name=f'conv_{i}',
        **self.types,
      )(nn.relu(y))
      if self.norm:
        y = batch_norm.BatchNorm(epsilon=1e-5, name=f'norm_{i}', **self.types)(y, train)
    return x + y


class CrossScaleFusion(module.Module):
  """Maps of all strides, of which each knows all coarser ones.

  Attributes:
    channels: of the results, a multiple of 32.
    norm: see `ResidualUnit`.

  Examples:
    >>> maps = [jnp.ones((1, side, side, 64)) for side in (32, 16, 8)]
    >>> levels, _ = jax.eval_shape(CrossScaleFusion(64).init_with_output, jax.random.key(0), maps)
    >>> [level.shape[1:] for level in levels]
    [(32, 32, 64), (16, 16, 64), (8, 8, 64)]
  """

  channels: int
  norm: bool = False

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool = False) -> list[jax.Array]:
    """Fuses maps.

    Args:
      maps: `[batch, height, width, channels_in]` of each level, finest first.
      train: see `BatchNorm`.

    Returns:
      `[batch, height, width, channels]` of each level, finest first.
    """
    fused: list[jax.Array] = []
    for i in reversed(range(len(maps))):
      x = projection_norm.ProjectionNorm(self.channels, name=f'projection_{i}', **self.types)(
        maps[i]
      )
      if fused:
        smooth = linear.Dense(self.channels, name=f'smoothing_{i}', **linear.TORCH, **self.types)
        unit = ResidualUnit(norm=self.norm, name=f'lateral_{i}', **self.types)
        above = resize.resize(fused[-1], x.shape[1:3], 'bilinear', align_corners=True)
        x = smooth(above) + unit(x, train)
      x = ResidualUnit(norm=self.norm, name=f'output_{i}', **self.types)(x, train)
      fused.append(parallel.constrain(x, 'batch', 'height', 'width', 'channels'))
    return fused[::-1]
