"""Semantic FPN: a feature pyramid whose levels are upsampled and added.

Source: Kirillov et al. 2019, "Panoptic Feature Pyramid Networks" (arXiv 1901.02446), section 3.1,
on the feature pyramid of Lin et al. 2017 (arXiv 1612.03144), as in mmsegmentation.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax

from crossattn_jax import parallel
from crossattn_jax.heads import feature_pyramid
from crossattn_jax.heads import style as style_lib


class SemanticFPNHead(nn.Module):
  """Convolutions and upsampling of each level to the finest, their sum, a classifier.

  Attributes:
    num_classes: of the result.
    style: norms, activations and initialisation; see `style.Style`.
    channels: of the convolutions.
  """

  num_classes: int
  style: style_lib.Style
  channels: int = 128

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool = False) -> jax.Array:
    """Maps a pyramid, finest level first, to logits at the finest level's size."""
    total = None
    for level, x in enumerate(maps):
      for i in range(max(1, level)):
        x = self.style.unit(self.channels, 3, name=f'level_{level}_conv_{i}')(x, train)
        if level:
          x = self.style.resize(x, (2 * x.shape[1], 2 * x.shape[2]))
      x = x if total is None else total + self.style.resize(x, total.shape[1:3])
      total = parallel.constrain(x, 'batch', 'height', 'width', 'channels')
    return self.style.classify(total, self.num_classes, train)


class SemanticFPN(nn.Module):
  """A feature pyramid with its head.

  Attributes:
    num_classes: of the result.
    style: norms, activations and initialisation; see `style.Style`.
    pyramid_channels: of the feature pyramid.
    channels: of the head.

  Examples:
    >>> maps = [jnp.ones((1, side, side, 64)) for side in (32, 16, 8, 4)]
    >>> head = SemanticFPN(num_classes=150, style=style_lib.Style())
    >>> jax.eval_shape(head.init_with_output, jax.random.key(0), maps)[0].shape
    (1, 32, 32, 150)
  """

  num_classes: int
  style: style_lib.Style
  pyramid_channels: int = 256
  channels: int = 128

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool = False) -> jax.Array:
    """Maps a backbone's maps, finest first, to logits at the finest one's size."""
    pyramid = feature_pyramid.FeaturePyramid(
      self.pyramid_channels, name='pyramid', **self.style.types
    )(maps)
    head = SemanticFPNHead(self.num_classes, self.style, self.channels, name='decoder')
    return head(pyramid, train)
