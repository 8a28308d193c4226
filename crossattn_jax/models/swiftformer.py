"""SwiftFormer: a convolutional pyramid whose stages end in efficient additive attention.

Source: Shaker, Maaz, Rasheed, Khan, Yang, Khan, "SwiftFormer: Efficient Additive Attention for
Transformer-based Real-time Mobile Vision Applications", ICCV 2023 (arXiv 2303.15446). Where paper
and official code (Amshaker/SwiftFormer) differ, this follows the code; docs/swiftformer.md lists
the differences.

Four stages at strides 4, 8, 16 and 32. Each is a stack of convolutional encoders and one
SwiftFormer encoder; batch norm throughout.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.attention import efficient_additive
from crossattn_jax.layers import (
  activations,
  batch_norm,
  convolution,
  depthwise_conv,
  drop_path,
  initializers,
  linear,
  module,
  stack,
)
from crossattn_jax.models import registry
from crossattn_jax.models.parts import checks, classifier
from crossattn_jax.models.parts import options as options_lib
from crossattn_jax.models.parts.types import Features

# Parameters with one factor per channel, which the original keeps as columns: it decays them, and
# clips the gradient of each element by itself, unlike that of vectors.
CHANNEL_FACTORS = (r'.*/layer_scale[12]?', r'.*/query_weights')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options_lib.Options):
  """What all parts of a model have in common.

  Attributes:
    mlp_ratio: hidden width of the MLPs per channel.
    layer_scale: initial value of the factors of attention and MLP; None leaves them out.
    attn_weights: how scores of tokens become weights; see `efficient_additive_attention`.
    frozen_norm: whether batch norms use their running statistics in training too.
  """

  mlp_ratio: float = 4
  layer_scale: float | None = 1e-5
  attn_weights: str = 'l2'
  frozen_norm: bool = False

  def normalize(self, x: jax.Array, train: bool, name: str = 'norm') -> jax.Array:
    """Applies a batch norm."""
    return batch_norm.BatchNorm(name=name, **self.types)(x, train and not self.frozen_norm)

  def dense(self, x: jax.Array, channels: int, name: str) -> jax.Array:
    """Applies a 1 x 1 convolution."""
    return linear.Dense(channels, kernel_init=initializers.linear, name=name, **self.types)(x)

  def halve(
    self, x: jax.Array, channels: int, name: str, side: int = 3, stride: int = 2, padding: int = 1
  ) -> jax.Array:
    """Applies a convolution, 3 x 3 with stride 2 by default."""
    conv = convolution.convolution(
      x.shape[-1],
      channels,
      side,
      stride=stride,
      padding=padding,
      kernel_init=initializers.linear,
      bias_init=nn.initializers.zeros,
      name=name,
      **self.types,
    )
    return parallel.constrain(conv(x), 'batch', 'height', 'width', 'channels')

  def scale(self, module: nn.Module, x: jax.Array, name: str, initial: float) -> jax.Array:
    """Multiplies each channel by a factor of its own."""
    init = nn.initializers.constant(initial)
    return x * module.param(name, init, x.shape[-1:], self.param_dtype).astype(x.dtype)


class Stem(nn.Module):
  """From the image to the first stage (patch embedding).

  Attributes:
    channels: of the result.
    options: common to all parts.
  """

  channels: int
  options: Options

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, bands]` to a quarter of height and width."""
    x = image
    for i, channels in enumerate((self.channels // 2, self.channels)):
      x = self.options.halve(x, channels, f'conv_{i}')
      x = nn.relu(self.options.normalize(x, train, f'norm_{i}'))
    return x


class Downsampling(nn.Module):
  """From one stage to the next, at half the height and width.

  Attributes:
    channels: of the result.
    options: common to all parts.
    side: of the convolution's kernel.
    stride: of it.
    padding: pixels around the map.
  """

  channels: int
  options: Options
  side: int = 3
  stride: int = 2
  padding: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, width_in]` to half of height and width."""
    window = self.side, self.stride, self.padding
    return self.options.normalize(self.options.halve(x, self.channels, 'conv', *window), train)


class ConvEncoder(nn.Module):
  """Depthwise convolution, batch norm and MLP, added to their input (section 3.3).

  The local representation at the start of a SwiftFormer encoder is one too, with `mlp_ratio` 1.

  Attributes:
    mlp_ratio: hidden width per channel.
    drop_path_rate: of the residual branch.
    options: common to all parts.
    side: of the depthwise convolution's kernel, odd.
    layer_scale: whether the branch has a factor per channel.
  """

  mlp_ratio: float
  drop_path_rate: float
  options: Options
  side: int = 3
  layer_scale: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    options, channels = self.options, x.shape[-1]
    out = depthwise_conv.DepthwiseConv(
      self.side,
      kernel_init=initializers.linear,
      bias_init=nn.initializers.zeros,
      name='depthwise',
      **options.types,
    )(x)
    out = options.normalize(out, train)
    out = activations.gelu(options.dense(out, int(self.mlp_ratio * channels), 'fc1'))
    out = options.dense(out, channels, 'fc2')
    if self.layer_scale:
      out = options.scale(self, out, 'layer_scale', 1.0)
    x += drop_path.DropPath(self.drop_path_rate)(out, train)
    return parallel.constrain(x, 'batch', 'height', 'width', 'channels')


class FeedForward(nn.Module):
  """Batch norm, linear, GELU, linear, by default back to the input's width.

  Attributes:
    options: common to all parts.
    channels: of the result; those of the input where None.
  """

  options: Options
  channels: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, width_in]` to the same height and width."""
    options, channels = self.options, x.shape[-1]
    x = options.normalize(x, train)
    x = activations.gelu(options.dense(x, int(options.mlp_ratio * channels), 'fc1'))
    return options.dense(x, self.channels or channels, 'fc2')


class SwiftFormerEncoder(nn.Module):
  """Local representation, efficient additive attention and MLP, each with its residual (3.3).

  Attributes:
    drop_path_rate: of attention and MLP.
    options: common to all parts.
  """

  drop_path_rate: float
  options: Options

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
    """Maps `[batch, height, width, channels]` to the same shape.

    Args:
      x: the map.
      train: whether drop path and batch statistics are on.

    Returns:
      The map, and the weight of each position in the global query, `[batch, height, width]`.
    """
    options = self.options
    x = ConvEncoder(1, 0.0, options, name='local_representation')(x, train)
    attention = efficient_additive.EfficientAdditiveAttention(
      normalization=options.attn_weights, name='attention', **options.types
    )
    out, weights = attention(x, train, with_weights=True)
    x += self._branch(out, train, 'layer_scale1')
    x += self._branch(FeedForward(options, name='mlp')(x, train), train, 'layer_scale2')
    return parallel.constrain(x, 'batch', 'height', 'width', 'channels'), weights

  def _branch(self, x: jax.Array, train: bool, name: str) -> jax.Array:
    if self.options.layer_scale is not None:
      x = self.options.scale(self, x, name, self.options.layer_scale)
    return drop_path.DropPath(self.drop_path_rate)(x, train)


class Stage(nn.Module):
  """Convolutional encoders and one SwiftFormer encoder at one resolution.

  Attributes:
    drop_path_rates: one per block.
    drop_convolutions: whether they apply to the convolutional encoders too.
    options: common to all parts.
  """

  drop_path_rates: tuple[float, ...]
  drop_convolutions: bool
  options: Options

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
    """Maps `[batch, height, width, channels]` to the same shape; see `SwiftFormerEncoder`."""
    *rates, last = self.drop_path_rates
    x = stack.apply_blocks(
      self,
      lambda i, rate, **where: ConvEncoder(self.options.mlp_ratio, rate, self.options, **where),
      rates if self.drop_convolutions else [0.0] * len(rates),
      x,
      train,
      **self.options.loops,
    )
    encoder = SwiftFormerEncoder(last, self.options, name=f'block_{len(rates)}')
    return stack.apply_block(encoder, x, train, remat=self.options.remat)


class SwiftFormer(module.Module):
  """The classifier, or the backbone of a dense predictor.

  Attributes:
    num_classes: 0 returns the mean of the last map in place of logits.
    image_size: (height, width) of the natural input; any other works.
    widths: channels of each stage.
    depths: blocks of each stage, the last of which is the SwiftFormer encoder.
    mlp_ratio: hidden width of the MLPs per channel.
    layer_scale: initial value of the factors of attention and MLP; None leaves them out.
    attn_weights: how scores of tokens become weights: 'l2', 'ones', 'softmax' or 'raw'; see
      `efficient_additive_attention`. Weights are good only with their own: 'ones' are the first
      release's and transformers'.
    frozen_norm: whether batch norms use their running statistics in training too, as in official
      fine-tuning.
    distillation: whether there is a second head, which learns from a teacher. The evaluation
      averages the logits of both.
    average_heads: whether training averages them too, as transformers does: then nothing is
      distilled.
    backbone: whether to leave out classifiers and final norm and to give each stage's map a batch
      norm of its own, whose result only the dense predictor sees.
    drop_path_rate: stochastic depth, growing linearly from 0 to this rate with depth, of the
      SwiftFormer encoders.
    drop_convolutions: whether the rate also applies to the convolutional encoders, as in timm.
    num_channels: of the input image.
    remat: whether the backward pass recomputes each block instead of storing it.
    scan_blocks: whether the convolutional encoders of a stage are one loop: smaller programs, which
      compute the same. Parameters keep their names.
  """

  strides = (4, 8, 16, 32)  # Of the maps 'stage_0' to 'stage_3'.

  num_classes: int = 1000
  image_size: tuple[int, int] = (224, 224)
  widths: tuple[int, ...] = (48, 56, 112, 220)
  depths: tuple[int, ...] = (3, 3, 6, 4)
  mlp_ratio: float = 4
  layer_scale: float | None = 1e-5
  attn_weights: efficient_additive.Normalization = 'l2'
  frozen_norm: bool = False
  distillation: bool = True
  average_heads: bool = False
  backbone: bool = False
  drop_path_rate: float = 0.0
  drop_convolutions: bool = False
  num_channels: int = 3
  remat: bool = False
  scan_blocks: bool = False

  def __post_init__(self):
    self._check()
    super().__post_init__()

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> tuple[Any, Features]:
    """Classifies images, or computes the maps for a dense predictor.

    Args:
      image: normalised, `[batch, height, width, num_channels]`.
      train: whether drop path (rng 'drop_path') is on and batch norms use the batch, whose
        statistics go into the collection 'batch_stats' where that is mutable.

    Returns:
      Logits `[batch, num_classes]` in at least float32: in training those of the first head, else
      the average of both heads (without classes the mean of the last map; with `backbone` the four
      maps). And features:
        'stage_{s}': what stage s returns, `[batch, height, width, channels]` at stride 4 * 2^s;
          with `backbone` after its own norm.
        'attention/{s}': weight of each position in the global query of stage s, `[batch, height,
          width]`.
        'logits/class', 'logits/distillation': of each head, where there are two.
    """
    checks.check_image(self, image, self.num_channels)
    options = Options.of(self)
    features: Features = {}
    rates = drop_path.growing_rates(self.drop_path_rate, self.depths)
    x = image
    for s, channels in enumerate(self.widths):
      if s == 0:
        x = Stem(channels, options, name='stem')(x, train)
      else:
        x = Downsampling(channels, options, name=f'downsampling_{s}')(x, train)
      x, features[f'attention/{s}'] = Stage(
        rates[s], self.drop_convolutions, options, name=f'stage_{s}'
      )(x, train)
      features[f'stage_{s}'] = x
      if self.backbone:
        features[f'stage_{s}'] = options.normalize(x, train, f'output_norm_{s}')
    if self.backbone:
      return tuple(features[f'stage_{s}'] for s in range(len(self.widths))), features

    x = classifier.global_mean(options.normalize(x, train, 'norm'))
    if self.num_classes == 0:
      return x, features
    logits = classifier.classify(x, self.num_classes, **options.types)
    if not self.distillation:
      return logits, features
    distilled = classifier.classify(x, self.num_classes, 'head_distillation', **options.types)
    average = (logits + distilled) / 2
    if self.average_heads:
      return average, features
    features |= {'logits/class': logits, 'logits/distillation': distilled}
    return (logits if train else average), features

  @nn.nowrap
  def attention_maps(self, features: Features) -> dict[str, jax.Array]:
    """Returns how much each position counts in the global query of each stage.

    Args:
      features: as `__call__` returns them.

    Returns:
      Maps `[batch, height, width]` of the weights without their signs, of each stage whose map has
      more than one position.
    """
    names = [f'stage {s + 1}: how much each place counts' for s in range(len(self.widths))]
    weights = {name: features[f'attention/{s}'] for s, name in enumerate(names)}
    return {name: jnp.abs(x) for name, x in weights.items() if x[0].size > 1}

  @nn.nowrap
  def _check(self) -> None:
    """Raises a ValueError that names the first field that does not fit the others."""
    if len(self.depths) != len(self.widths) or min(self.depths) < 1:
      raise ValueError(
        f'depths={self.depths} needs a positive entry for each of {len(self.widths)} stages '
        f'(widths={self.widths})'
      )
    checks.check_choices(self, attn_weights=efficient_additive.NORMALIZATIONS)


registry.register('swiftformer_xs', SwiftFormer)
registry.register('swiftformer_s', SwiftFormer, widths=(48, 64, 168, 224), depths=(3, 3, 9, 6))
registry.register('swiftformer_l1', SwiftFormer, widths=(48, 96, 192, 384), depths=(4, 3, 10, 5))
registry.register('swiftformer_l3', SwiftFormer, widths=(64, 128, 320, 512), depths=(4, 4, 12, 6))
