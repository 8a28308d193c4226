"""The head of PSPNet.

Source: Zhao et al. 2017 (arXiv 1612.01105), as in CCNet's repository.
"""

from flax import linen as nn
import jax

from crossattn_jax.heads import style as style_lib
from crossattn_jax.heads.segmentation import pyramid_pooling


class PSPHead(nn.Module):
  """Pyramid pooling of the last map and a classifier.

  Attributes:
    num_classes: of the result.
    style: norms, activations and initialisation; see `style.Style`.
    channels: of each pooled map.
    fused: of the fused map.
  """

  num_classes: int
  style: style_lib.Style
  channels: int = 512
  fused: int = 512

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels_in]` to logits of the same size."""
    pool = pyramid_pooling.PyramidPooling(
      self.channels, self.fused, pooled_first=True, style=self.style, name='pooling'
    )
    return self.style.classify(pool(x, train), self.num_classes, train)
