"""ResNet, with a deep stem or the paper's, and dilated in place of strided stages where asked for.

Source: He et al. 2016 (arXiv 1512.03385), with the stride in the 3 x 3 convolutions; the stem of
three 3 x 3 convolutions and the dilated stages as in PSPNet (Zhao et al. 2017, arXiv 1612.01105),
whose ImageNet weights CCNet starts from; multi-grid as in DeepLabv3 (Chen et al. 2017, arXiv
1706.05587).
"""

import functools
from typing import Any

from flax import linen as nn
import jax

from crossattn_jax import parallel
from crossattn_jax.layers import conv_norm, linear, module, pooling, stack
from crossattn_jax.models import registry
from crossattn_jax.models.parts import checks, classifier
from crossattn_jax.models.parts.types import Features

# Channels of a bottleneck's result per channel inside.
EXPANSION = 4


class DeepStem(nn.Module):
  """Three 3 x 3 convolutions, the first with stride 2, and a maximum pool.

  Attributes:
    widths: of the convolutions.
    ceil_mode: of the pool: whether even sizes give one more row and column.
    unit: builds a `ConvNorm`.
  """

  widths: tuple[int, ...]
  ceil_mode: bool
  unit: Any

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, bands]` to a quarter of height and width."""
    x = image
    for i, width in enumerate(self.widths):
      x = self.unit(width, 3, stride=1 if i else 2, name=f'conv_{i}')(x, train)
    x = pooling.max_pool(x, 3, 2, padding=1, ceil_mode=self.ceil_mode)
    return parallel.constrain(x, 'batch', 'height', 'width', 'channels')


class Stem(nn.Module):
  """The paper's: one 7 x 7 convolution with stride 2, and a maximum pool.

  Attributes:
    width: of the convolution.
    unit: builds a `ConvNorm`.
  """

  width: int
  unit: Any

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, bands]` to a quarter of height and width."""
    x = self.unit(self.width, 7, stride=2, name='conv')(image, train)
    x = pooling.max_pool(x, 3, 2, padding=1)
    return parallel.constrain(x, 'batch', 'height', 'width', 'channels')


class Bottleneck(nn.Module):
  """1 x 1, 3 x 3 and 1 x 1 convolutions, added to the input (figure 5 right).

  Attributes:
    width: inside; the result has four times as many channels.
    stride: of the 3 x 3 convolution.
    dilation: of it.
    project: whether the input goes through a 1 x 1 convolution before it is added.
    unit: builds a `ConvNorm`.
  """

  width: int
  stride: int
  dilation: int
  project: bool
  unit: Any

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to its size divided by the stride."""
    channels = EXPANSION * self.width
    y = self.unit(self.width, 1, name='conv_0')(x, train)
    y = self.unit(self.width, 3, stride=self.stride, dilation=self.dilation, name='conv_1')(
      y, train
    )
    y = self.unit(channels, 1, activation=None, name='conv_2')(y, train)
    if self.project:
      x = self.unit(channels, 1, stride=self.stride, activation=None, name='shortcut')(x, train)
    return parallel.constrain(nn.relu(x + y), 'batch', 'height', 'width', 'channels')


class Stage(nn.Module):
  """Bottlenecks at one resolution.

  Attributes:
    depth: how many.
    width: see `Bottleneck`.
    stride: of the first.
    dilation: of all.
    multi_grid: factors of the dilation, block after block and again from the first.
    unit: builds a `ConvNorm`.
    remat: whether the backward pass recomputes each block.
    scan_blocks: whether equal blocks are one loop.
  """

  depth: int
  width: int
  stride: int
  dilation: int
  multi_grid: tuple[int, ...]
  unit: Any
  remat: bool = False
  scan_blocks: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to its size divided by the stride."""
    # The first block's shortcut is the identity where it leaves the shape.
    project = self.stride > 1 or x.shape[-1] != EXPANSION * self.width
    dilations = [
      self.dilation * self.multi_grid[i % len(self.multi_grid)] for i in range(self.depth)
    ]
    return stack.apply_blocks(
      self,
      lambda i, _, **where: Bottleneck(
        self.width, 1 if i else self.stride, dilations[i], not i and project, self.unit, **where
      ),
      [0.0] * self.depth,
      x,
      train,
      kinds=[(not i and project, dilation) for i, dilation in enumerate(dilations)],
      scan=self.scan_blocks,
      remat=self.remat,
    )


class ResNet(module.Module):
  """The classifier, or the backbone of a dense predictor.

  Attributes:
    num_classes: 0 returns the mean of the last map in place of logits.
    image_size: (height, width) of the natural input; any other size will do.
    depths: bottlenecks of each stage.
    widths: inside the bottlenecks of each stage.
    stem_widths: of the convolutions of the stem; one alone is the paper's 7 x 7 convolution.
    output_stride: 32; 16, 8 and 4 keep the last one, two or three stages at the resolution before
      them and dilate their convolutions instead, from the first block on.
    multi_grid: factors of the dilation of the last stage's blocks.
    ceil_mode: of the pool in the stem; see `DeepStem`.
    absolute_scale: whether norms are those of Inplace-ABN; see `BatchNorm`.
    num_channels: of the input image.
    remat: whether the backward pass recomputes each block instead of storing it.
    scan_blocks: whether the equal blocks of a stage are one loop: smaller programs, which compute
      the same. Parameters keep their names.
  """

  strides = (4, 8, 16, 32)  # Of the maps 'stage_0' to 'stage_3'.

  num_classes: int = 1000
  image_size: tuple[int, int] = (224, 224)
  depths: tuple[int, ...] = (3, 4, 6, 3)
  widths: tuple[int, ...] = (64, 128, 256, 512)
  stem_widths: tuple[int, ...] = (64, 64, 128)
  output_stride: int = 32
  multi_grid: tuple[int, ...] = (1,)
  ceil_mode: bool = False
  absolute_scale: bool = False
  num_channels: int = 3
  remat: bool = False
  scan_blocks: bool = False

  def __post_init__(self):
    if self.output_stride not in (4, 8, 16, 32):
      raise ValueError(f'output_stride={self.output_stride} is not one of 4, 8, 16, 32')
    checks.check_lengths(self, 'widths', 'stages', 'depths')
    super().__post_init__()

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> tuple[jax.Array, Features]:
    """Classifies images.

    Args:
      image: normalised, `[batch, height, width, num_channels]`.
      train: whether batch norms use the batch, whose statistics go into the collection
        'batch_stats' where that is mutable.

    Returns:
      Logits `[batch, num_classes]` in at least float32 (without classes the mean of the last map),
      and features:
        'stage_{s}': what stage s returns, `[batch, height, width, 4 * widths[s]]` at stride 4, 8,
          16 and 32, or no more than `output_stride`.
    """
    checks.check_image(self, image, self.num_channels)
    unit = functools.partial(conv_norm.ConvNorm, absolute_scale=self.absolute_scale, **self.types)
    features: Features = {}
    if len(self.stem_widths) == 1:
      stem = Stem(self.stem_widths[0], unit, name='stem')
    else:
      stem = DeepStem(self.stem_widths, self.ceil_mode, unit, name='stem')
    x = stem(image, train)
    stride, dilation, last = 4, 1, len(self.depths) - 1
    for s, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
      step = 2 if s else 1
      if stride * step > self.output_stride:
        dilation, step = dilation * step, 1
      stride *= step
      x = Stage(
        depth,
        width,
        step,
        dilation,
        self.multi_grid if s == last else (1,),
        unit,
        self.remat,
        self.scan_blocks,
        name=f'stage_{s}',
      )(x, train)
      features[f'stage_{s}'] = x
    vector = classifier.global_mean(x)
    logits = classifier.classify(vector, self.num_classes, **linear.TORCH, **self.types)
    return logits, features


DEPTHS = {'resnet50': (3, 4, 6, 3), 'resnet101': (3, 4, 23, 3)}
for _name, _depths in DEPTHS.items():
  registry.register(_name, ResNet, depths=_depths, stem_widths=(64,))
  registry.register(f'{_name}_deep_stem', ResNet, depths=_depths)
