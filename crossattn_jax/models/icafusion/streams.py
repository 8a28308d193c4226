"""The backbone of one modality, which each has with parameters of its own.

All of them return the maps at strides 8, 16 and 32, finest first.
"""

import functools

from flax import linen as nn
import jax

from crossattn_jax.layers import conv_norm, module
from crossattn_jax.models.backbones import csp_darknet, resnet, vgg


class Stream(module.Module):
  """A backbone.

  Attributes:
    widths: of five parts, each at half the size of the one before; see the subclasses.
    depths: of those that repeat something.
  """

  widths: tuple[int, ...]
  depths: tuple[int, ...]


class CspDarknet(Stream):
  """A stem and four stages, and the pooled pyramid on the last (YOLOv5 v6).

  `widths` are the channels of all five, `depths` the bottlenecks of the stages.
  """

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
    """Maps `[batch, height, width, bands]` to the three maps."""
    # The kernel of 6 has a margin of 2 here, its 36 taps those of 3 x 3 cells of 2 x 2 pixels.
    x = csp_darknet.ConvUnit(self.widths[0], 6, 2, name='stem', **self.types)(image, train)
    maps = []
    for s, (width, depth) in enumerate(zip(self.widths[1:], self.depths, strict=True)):
      x = csp_darknet.ConvUnit(width, 3, 2, name=f'reduce_{s}', **self.types)(x, train)
      x = csp_darknet.CrossStage(width, depth, name=f'stage_{s}', **self.types)(x, train)
      maps.append(x)
    pool = csp_darknet.SpatialPyramidPooling(self.widths[-1], name='pooled', **self.types)
    return *maps[1:-1], pool(x, train)


class ResNet(Stream):
  """The paper's stem and four stages of bottlenecks, with the norms of YOLOv5.

  `widths` are those of the stem and of the stages' inner convolutions, whose results have four
  times as many channels; `depths` are the bottlenecks of the stages.
  """

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
    """Maps `[batch, height, width, bands]` to the three maps."""
    unit = functools.partial(conv_norm.ConvNorm, **csp_darknet.NORM, **self.types)
    x = resnet.Stem(self.widths[0], unit, name='stem')(image, train)
    maps = []
    for s, (width, depth) in enumerate(zip(self.widths[1:], self.depths, strict=True)):
      stride = 2 if s else 1
      x = resnet.Stage(depth, width, stride, 1, (1,), unit, name=f'stage_{s}')(x, train)
      maps.append(x)
    return tuple(maps[1:])


class Vgg(Stream):
  """Five blocks, of `depths` convolutions with `widths` channels."""

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
    """Maps `[batch, height, width, bands]` to the three maps."""
    x, maps = image, []
    for s, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
      x = vgg.Block(width, depth, name=f'block_{s}', **self.types)(x, train)
      maps.append(x)
    return tuple(maps[2:])


STREAMS: dict[str, type[Stream]] = {'csp_darknet': CspDarknet, 'resnet': ResNet, 'vgg': Vgg}
