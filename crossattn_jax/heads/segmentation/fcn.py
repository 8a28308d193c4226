"""A convolution and a classifier: the auxiliary head of most segmentation networks.

Source: Long et al. 2015 (arXiv 1411.4038); as auxiliary head in PSPNet (arXiv 1612.01105).
"""

from flax import linen as nn
import jax

from crossattn_jax.heads import style as style_lib


class FCNHead(nn.Module):
  """A 3 x 3 convolution and a classifier.

  Attributes:
    num_classes: of the result.
    style: norms, activations and initialisation; see `style.Style`.
    channels: between the two.
    use_bias: of the convolution.

  Examples:
    >>> head, x = FCNHead(num_classes=19, style=style_lib.Style()), jnp.ones((1, 8, 8, 64))
    >>> jax.eval_shape(head.init_with_output, jax.random.key(0), x)[0].shape
    (1, 8, 8, 19)
  """

  num_classes: int
  style: style_lib.Style
  channels: int = 256
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels_in]` to logits of the same size."""
    x = self.style.unit(self.channels, 3, use_bias=self.use_bias, name='conv')(x, train)
    return self.style.classify(x, self.num_classes, train)
