"""ResNet whose norms and rectifiers come before the convolutions: what MIT sees images with.

Source: Identity Mappings in Deep Residual Networks, He et al. 2016 (arXiv 1603.05027), with the
stride in the 3 x 3 convolutions, as timm's `resnetv2_*` with batch norm.
"""

from flax import linen as nn
import jax

from crossattn_jax import parallel
from crossattn_jax.layers import batch_norm, convolution, module, pooling, stack
from crossattn_jax.models import registry
from crossattn_jax.models.parts import checks, classifier
from crossattn_jax.models.parts.types import Features

# Channels of a bottleneck's result per channel inside.
EXPANSION = 4

# He et al. 2015 (arXiv 1502.01852), by the outputs.
_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class Bottleneck(module.Module):
  """1 x 1, 3 x 3 and 1 x 1 convolutions, each of a normalised and rectified input (figure 4e).

  The last convolution starts at 0: a block is at first its shortcut.

  Attributes:
    width: inside; the result has four times as many channels.
    stride: of the 3 x 3 convolution.
    project: whether the shortcut is a 1 x 1 convolution of the rectified input, in place of the
      input.
  """

  width: int
  stride: int
  project: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to its size divided by the stride."""

    def activate(x: jax.Array, name: str) -> jax.Array:
      return nn.relu(batch_norm.BatchNorm(name=name, **self.types)(x, train))

    def convolve(x: jax.Array, channels: int, side: int, name: str, stride=1, init=_INIT):
      return convolution.convolution(
        x.shape[-1],
        channels,
        side,
        stride=stride,
        padding=side // 2,
        use_bias=False,
        kernel_init=init,
        name=name,
        **self.types,
      )(x)

    channels = EXPANSION * self.width
    y = activate(x, 'norm_0')
    if self.project:
      x = convolve(y, channels, 1, 'shortcut', self.stride)
    y = convolve(y, self.width, 1, 'conv_0')
    y = convolve(activate(y, 'norm_1'), self.width, 3, 'conv_1', self.stride)
    y = convolve(activate(y, 'norm_2'), channels, 1, 'conv_2', init=nn.initializers.zeros)
    return parallel.constrain(x + y, 'batch', 'height', 'width', 'channels')


class Stage(module.Module):
  """Bottlenecks at one resolution.

  Attributes:
    depth: how many.
    width: see `Bottleneck`.
    stride: of the first.
    remat: whether the backward pass recomputes each block.
    scan_blocks: whether equal blocks are one loop.
  """

  depth: int
  width: int
  stride: int
  remat: bool = False
  scan_blocks: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to its size divided by the stride."""
    return stack.apply_blocks(
      self,
      lambda i, _, **where: Bottleneck(
        self.width, 1 if i else self.stride, i == 0, **self.types, **where
      ),
      [0.0] * self.depth,
      x,
      train,
      kinds=[i == 0 for i in range(self.depth)],
      scan=self.scan_blocks,
      remat=self.remat,
    )


class PreactResNet(module.Module):
  """The classifier, or the backbone of a dense predictor.

  Attributes:
    num_classes: 0 returns the mean of the last map in place of logits.
    image_size: (height, width) of the natural input; any other size will do.
    depths: bottlenecks of each stage.
    widths: inside the bottlenecks of each stage.
    stem_width: channels of the stem.
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
  stem_width: int = 64
  num_channels: int = 3
  remat: bool = False
  scan_blocks: bool = False

  def __post_init__(self):
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
      and features: 'stage_{s}', what stage s returns, `[batch, height, width, 4 * widths[s]]` at
      stride 4 * 2^s. The last one is normalised and rectified, as the mean takes it.
    """
    checks.check_image(self, image, self.num_channels)
    x = convolution.convolution(
      self.num_channels,
      self.stem_width,
      7,
      stride=2,
      padding=3,
      use_bias=False,
      kernel_init=_INIT,
      name='stem',
      **self.types,
    )(image)
    x = pooling.max_pool(x, 3, 2, padding=1)
    x = parallel.constrain(x, 'batch', 'height', 'width', 'channels')
    features: Features = {}
    for s, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
      x = Stage(
        depth,
        width,
        2 if s else 1,
        self.remat,
        self.scan_blocks,
        name=f'stage_{s}',
        **self.types,
      )(x, train)
      if s == len(self.depths) - 1:
        x = nn.relu(batch_norm.BatchNorm(name='norm', **self.types)(x, train))
      features[f'stage_{s}'] = x
    vector = classifier.global_mean(x)
    init = nn.initializers.normal(0.01)
    logits = classifier.classify(vector, self.num_classes, kernel_init=init, **self.types)
    return logits, features


registry.register('resnetv2_50', PreactResNet)
registry.register('resnetv2_101', PreactResNet, depths=(3, 4, 23, 3))
