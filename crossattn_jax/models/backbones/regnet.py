"""RegNetY: a convolutional network with squeeze-and-excitation; the teacher of SwiftFormer.

Source: Radosavovic, Kosaraju, Girshick, He, Dollar, "Designing Network Design Spaces", CVPR 2020
(arXiv 2003.13678), as timm has it. `regnety_160` is RegNetY-16GF, whose weights of the DeiT project
teach the students of several papers.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.layers import batch_norm, convolution, linear, module, stack
from crossattn_jax.models import registry
from crossattn_jax.models.parts import checks, classifier
from crossattn_jax.models.parts.types import Features


class ConvNorm(module.Module):
  """A convolution without bias, batch norm, and ReLU on request.

  Attributes:
    channels: of the result.
    side: of the kernel, odd.
    stride: in both directions.
    groups: of channels that see only each other.
    relu: whether a ReLU follows.
  """

  channels: int
  side: int = 1
  stride: int = 1
  groups: int = 1
  relu: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels_in]` to its size divided by the stride."""
    fan_out = self.side**2 * self.channels / self.groups
    x = convolution.convolution(
      x.shape[-1],
      self.channels,
      self.side,
      stride=self.stride,
      padding=self.side // 2,
      feature_group_count=self.groups,
      use_bias=False,
      kernel_init=nn.initializers.normal(math.sqrt(2 / fan_out)),
      name='conv',
      **self.types,
    )(x)
    x = batch_norm.BatchNorm(name='norm', **self.types)(x, train)
    return nn.relu(x) if self.relu else x


class SqueezeExcitation(module.Module):
  """Multiplies each channel by a factor that depends on the means of all channels.

  Attributes:
    hidden: channels between the two linear maps.
  """

  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    mean = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis=(1, 2)).astype(x.dtype)
    hidden = nn.relu(linear.Dense(self.hidden, name='fc1', **self.types)(mean))
    factors = nn.sigmoid(linear.Dense(x.shape[-1], name='fc2', **self.types)(hidden))
    return x * factors[:, None, None]


class Bottleneck(module.Module):
  """1 x 1, grouped 3 x 3, squeeze-and-excitation, 1 x 1, added to a shortcut (figure 4, "Y").

  Attributes:
    channels: of the result.
    stride: of the grouped convolution and the shortcut.
    group_width: channels per group.
    squeeze_ratio: hidden channels of the squeeze per channel of the block's input.
  """

  channels: int
  stride: int
  group_width: int
  squeeze_ratio: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels_in]` to its size divided by the stride."""
    groups = self.channels // self.group_width
    out = ConvNorm(self.channels, name='conv1', **self.types)(x, train)
    out = ConvNorm(
      self.channels, side=3, stride=self.stride, groups=groups, name='conv2', **self.types
    )(out, train)
    hidden = round(self.squeeze_ratio * x.shape[-1])
    out = SqueezeExcitation(hidden, name='squeeze_excitation', **self.types)(out)
    out = ConvNorm(self.channels, relu=False, name='conv3', **self.types)(out, train)
    if x.shape[-1] != self.channels or self.stride > 1:
      x = ConvNorm(self.channels, stride=self.stride, relu=False, name='shortcut', **self.types)(
        x, train
      )
    return parallel.constrain(nn.relu(x + out), 'batch', 'height', 'width', 'channels')


class RegNet(module.Module):
  """The classifier.

  Attributes:
    num_classes: 0 returns the mean of the last map in place of logits.
    image_size: (height, width) of the natural input; any other works.
    stem_width: channels before the first stage.
    widths: channels of each stage.
    depths: blocks of each stage.
    group_width: channels per group of the 3 x 3 convolutions.
    squeeze_ratio: hidden channels of squeeze-and-excitation per channel of a block's input.
    num_channels: of the input image.
    remat: whether the backward pass recomputes each block instead of storing it.
    scan_blocks: whether the equal blocks of a stage are one loop: smaller programs, which compute
      the same. Parameters keep their names.
  """

  strides = (4, 8, 16, 32)  # Of the maps 'stage_0' to 'stage_3'.

  num_classes: int = 1000
  image_size: tuple[int, int] = (224, 224)
  stem_width: int = 32
  widths: tuple[int, ...] = (224, 448, 1232, 3024)
  depths: tuple[int, ...] = (2, 4, 11, 1)
  group_width: int = 112
  squeeze_ratio: float = 0.25
  num_channels: int = 3
  remat: bool = False
  scan_blocks: bool = False

  def __post_init__(self):
    checks.check_lengths(self, 'widths', 'stages', 'depths')
    if any(width % self.group_width for width in self.widths):
      raise ValueError(f'group_width={self.group_width} does not divide widths={self.widths}')
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
      and features: 'stage_{s}', what stage s returns, `[batch, height, width, channels]` at stride
      4 * 2^s.
    """
    checks.check_image(self, image, self.num_channels)
    features: Features = {}
    x = ConvNorm(self.stem_width, side=3, stride=2, name='stem', **self.types)(image, train)
    for s, (channels, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
      x = stack.apply_blocks(
        self,
        lambda i, _, channels=channels, **where: Bottleneck(
          channels, 1 if i else 2, self.group_width, self.squeeze_ratio, **self.types, **where
        ),
        [0.0] * depth,
        x,
        train,
        name=f'stage_{s}_block_{{}}',
        kinds=[i == 0 for i in range(depth)],
        scan=self.scan_blocks,
        remat=self.remat,
      )
      features[f'stage_{s}'] = x
    x = classifier.global_mean(x)
    if self.num_classes == 0:
      return x, features
    init = nn.initializers.normal(0.01)
    return classifier.classify(x, self.num_classes, kernel_init=init, **self.types), features


# RegNetY-16GF.
registry.register('regnety_160', RegNet)
