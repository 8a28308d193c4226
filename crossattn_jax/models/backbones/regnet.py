"""RegNetY: a convolutional network with squeeze-and-excitation; the teacher of SwiftFormer.

Source: Radosavovic, Kosaraju, Girshick, He, Dollar, "Designing Network Design Spaces", CVPR 2020
(arXiv 2003.13678), as timm has it. `regnety_160` is RegNetY-16GF, whose weights of the DeiT project
teach the students of several papers.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.layers import conv_norm, linear, module, stack
from crossattn_jax.models import registry
from crossattn_jax.models.parts import checks, classifier
from crossattn_jax.models.parts.types import Features

# He et al. 2015 (arXiv 1502.01852) by the outputs, of which each group of a grouped convolution has
# as many as inputs.
_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
_GROUPED_INIT = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


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
    unit = functools.partial(conv_norm.ConvNorm, self.channels, kernel_init=_INIT, **self.types)
    groups = self.channels // self.group_width
    out = unit(name='conv1')(x, train)
    grouped = unit(
      side=3, stride=self.stride, groups=groups, kernel_init=_GROUPED_INIT, name='conv2'
    )
    out = grouped(out, train)
    hidden = round(self.squeeze_ratio * x.shape[-1])
    out = SqueezeExcitation(hidden, name='squeeze_excitation', **self.types)(out)
    out = unit(activation=None, name='conv3')(out, train)
    if x.shape[-1] != self.channels or self.stride > 1:
      x = unit(stride=self.stride, activation=None, name='shortcut')(x, train)
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
    stem = conv_norm.ConvNorm(
      self.stem_width, 3, stride=2, kernel_init=_INIT, name='stem', **self.types
    )
    x = stem(image, train)
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
    init = nn.initializers.normal(0.01)
    return classifier.classify(x, self.num_classes, kernel_init=init, **self.types), features


# RegNetY-16GF.
registry.register('regnety_160', RegNet)
