"""Parts of CSPDarknet, the backbone and the neck of YOLOv5 detectors.

Source: CSPNet, Wang et al. 2020 (arXiv 1911.11929); spatial pyramid pooling, He et al. 2014 (arXiv
1406.4729), here by one small window several times. Widths and norms as in YOLOv5 v6.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.layers import conv_norm, module, pooling

# Of all batch norms of YOLOv5.
NORM = {'momentum': 0.97, 'epsilon': 1e-3}


class ConvUnit(conv_norm.ConvNorm):
  """A convolution without bias, a batch norm and SiLU; see `ConvNorm`."""

  activation: conv_norm.Activation | None = nn.silu
  momentum: float = NORM['momentum']
  epsilon: float = NORM['epsilon']


class Bottleneck(module.Module):
  """A 1 x 1 and a 3 x 3 convolution, added to the input.

  Attributes:
    shortcut: whether it is added.
  """

  shortcut: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    channels = x.shape[-1]
    y = ConvUnit(channels, 1, name='conv_0', **self.types)(x, train)
    y = ConvUnit(channels, 3, name='conv_1', **self.types)(y, train)
    return x + y if self.shortcut else y


class CrossStage(module.Module):
  """Bottlenecks on one half of the channels, beside the other half (CSPNet; C3 in YOLOv5).

  Attributes:
    channels: of the result.
    depth: bottlenecks.
    shortcut: whether they are residual.
  """

  channels: int
  depth: int
  shortcut: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels_in]` to `[batch, height, width, channels]`."""
    half = self.channels // 2
    deep = ConvUnit(half, name='deep', **self.types)(x, train)
    beside = ConvUnit(half, name='beside', **self.types)(x, train)
    for i in range(self.depth):
      deep = Bottleneck(self.shortcut, name=f'block_{i}', **self.types)(deep, train)
    x = jnp.concatenate([deep, beside], axis=-1)
    x = ConvUnit(self.channels, name='join', **self.types)(x, train)
    return parallel.constrain(x, 'batch', 'height', 'width', 'channels')


class SpatialPyramidPooling(module.Module):
  """Maxima over windows of growing size, beside each other (SPPF in YOLOv5).

  Attributes:
    channels: of the result.
    side: of the smallest window, odd. Applied again it gives the maxima of larger ones.
    repeats: how often.
  """

  channels: int
  side: int = 5
  repeats: int = 3

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels_in]` to `[batch, height, width, channels]`."""
    levels = [ConvUnit(x.shape[-1] // 2, name='reduce', **self.types)(x, train)]
    for _ in range(self.repeats):
      levels.append(pooling.max_pool(levels[-1], self.side, 1, padding=self.side // 2))
    x = jnp.concatenate(levels, axis=-1)
    x = ConvUnit(self.channels, name='join', **self.types)(x, train)
    return parallel.constrain(x, 'batch', 'height', 'width', 'channels')
