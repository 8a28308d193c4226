"""The head of DeepLabv3: atrous spatial pyramid pooling.

Source: Chen et al. 2017 (arXiv 1706.05587), section 3.3, as in CCNet's repository.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.heads import style as style_lib
from crossattn_jax.layers import pooling


class AtrousSpatialPyramidPooling(nn.Module):
  """The image's mean, a 1 x 1 and three dilated 3 x 3 convolutions of a map, fused.

  Attributes:
    channels: of each branch.
    fused: channels of the result.
    style: norms, activations and initialisation; see `style.Style`.
    dilations: of the 3 x 3 convolutions.
  """

  channels: int
  fused: int
  style: style_lib.Style
  dilations: tuple[int, ...] = (12, 24, 36)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels_in]` to `[batch, height, width, fused]`."""
    unit = self.style.unit
    image = unit(self.channels, name='image')(pooling.adaptive_average_pool(x, (1, 1)), train)
    branches = [
      jnp.broadcast_to(image, (*x.shape[:3], self.channels)),
      unit(self.channels, name='pixel')(x, train),
    ]
    for dilation in self.dilations:
      conv = unit(self.channels, 3, dilation=dilation, name=f'dilation_{dilation}')
      branches.append(conv(x, train))
    return unit(self.fused, name='fusion')(jnp.concatenate(branches, axis=-1), train)


class ASPPHead(nn.Module):
  """Atrous spatial pyramid pooling of the last map and a classifier.

  Attributes:
    num_classes: of the result.
    style: norms, activations and initialisation; see `style.Style`.
    channels: of each branch.
    fused: of the fused map.
  """

  num_classes: int
  style: style_lib.Style
  channels: int = 256
  fused: int = 512

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels_in]` to logits of the same size."""
    pool = AtrousSpatialPyramidPooling(self.channels, self.fused, self.style, name='pooling')
    return self.style.classify(pool(x, train), self.num_classes, train)
