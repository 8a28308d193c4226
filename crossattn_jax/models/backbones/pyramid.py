"""A plain pyramid backbone in which any attention from map to map can be swapped for another.

No published model: what the pyramids of this library have in common (overlapping stem and
downsampling, blocks of position convolution, attention and MLP), so that mechanisms are compared
with everything else equal.
"""

from flax import linen as nn
import jax

from crossattn_jax import parallel
from crossattn_jax.attention import map_attention
from crossattn_jax.layers import (
  activations,
  conv_norm,
  depthwise_conv,
  drop_path,
  mlp,
  module,
  stack,
)
from crossattn_jax.models import registry
from crossattn_jax.models.parts import checks, classifier
from crossattn_jax.models.parts.types import Features


class Block(module.Module):
  """Position convolution, attention and MLP, each added to its input.

  Attributes:
    attention: name; see `attention.map_attention`.
    stage: of the pyramid, from 0.
    block: of the stage, from 0.
    num_heads: of the attention.
    mlp_ratio: hidden width of the MLP per channel.
    drop_path_rate: of attention and MLP.
  """

  attention: str
  stage: int
  block: int
  num_heads: int
  mlp_ratio: float
  drop_path_rate: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    x += depthwise_conv.DepthwiseConv(3, name='position', **self.types)(x)
    branches = (
      map_attention.MapAttention(
        self.attention, self.stage, self.block, self.num_heads, name='attention', **self.types
      ),
      mlp.Mlp(int(self.mlp_ratio * x.shape[-1]), name='mlp', **self.types),
    )
    for number, branch in enumerate(branches, start=1):
      norm = self.layer_norm(f'norm{number}')
      x += drop_path.DropPath(self.drop_path_rate)(branch(norm(x)), train)
    return parallel.constrain(x, 'batch', 'height', 'width', 'channels')


class Pyramid(module.Module):
  """The classifier, or the backbone of a dense predictor.

  Attributes:
    num_classes: 0 returns the mean of the last map in place of logits.
    image_size: (height, width) of the natural input; any other size will do.
    attention: of every block; `attention.map_attention.list_attentions()` shows the names.
    widths: channels of each stage.
    depths: blocks of each stage.
    head_dim: channels of an attention head.
    mlp_ratio: hidden width of the MLPs per channel.
    drop_path_rate: stochastic depth, growing linearly from 0 to this rate with depth.
    num_channels: of the input image.
    remat: whether the backward pass recomputes each block instead of storing it.
  """

  strides = (4, 8, 16, 32)  # Of the maps 'stage_0' to 'stage_3'.

  num_classes: int = 1000
  image_size: tuple[int, int] = (224, 224)
  attention: str = 'global'
  widths: tuple[int, ...] = (64, 128, 256, 512)
  depths: tuple[int, ...] = (2, 2, 8, 2)
  head_dim: int = 32
  mlp_ratio: float = 4
  drop_path_rate: float = 0.0
  num_channels: int = 3
  remat: bool = False

  def __post_init__(self):
    map_attention.find_builder(self.attention)
    for width in self.widths:
      if width % self.head_dim:
        raise ValueError(f'head_dim={self.head_dim} does not divide the width {width}')
    if len(self.widths) != len(self.depths):
      raise ValueError(f'widths={self.widths} and depths={self.depths} must have as many stages')
    super().__post_init__()

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> tuple[jax.Array, Features]:
    """Classifies images.

    Args:
      image: normalised, `[batch, height, width, num_channels]`.
      train: whether drop path is on (rng 'drop_path') and batch norms use the batch, whose
        statistics go into the collection 'batch_stats' where that is mutable.

    Returns:
      Logits `[batch, num_classes]` in at least float32 (without classes the mean of the last map),
      and features:
        'stage_{s}': what stage s returns, `[batch, height, width, channels]` at stride 4 * 2^s.
    """
    checks.check_image(self, image, self.num_channels)
    rates = drop_path.growing_rates(self.drop_path_rate, self.depths)
    features: Features = {}
    x = conv_norm.ConvNorm(
      self.widths[0] // 2, 3, 2, activation=activations.gelu, name='stem', **self.types
    )(image, train)
    for s, channels in enumerate(self.widths):
      embedding = conv_norm.ConvNorm(
        channels, 3, 2, activation=None, name=f'embedding_{s}', **self.types
      )
      x = parallel.constrain(embedding(x, train), 'batch', 'height', 'width', 'channels')
      x = stack.apply_blocks(
        self,
        lambda i, rate, s=s, channels=channels, **where: Block(
          self.attention,
          s,
          i,
          channels // self.head_dim,
          self.mlp_ratio,
          rate,
          **self.types,
          **where,
        ),
        rates[s],
        x,
        train,
        name=f'stage_{s}_block_{{}}',
        remat=self.remat,
      )
      features[f'stage_{s}'] = x
    x = self.layer_norm('norm')(x)
    vector = classifier.global_mean(x)
    return classifier.classify(vector, self.num_classes, **self.types), features


registry.register(
  'pyramid_tiny', Pyramid, widths=(32, 64, 128, 256), depths=(2, 2, 4, 2), mlp_ratio=3
)
registry.register('pyramid_small', Pyramid)
