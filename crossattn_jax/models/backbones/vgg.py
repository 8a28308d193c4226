"""The block of VGG (Simonyan and Zisserman 2015, arXiv 1409.1556, section 2.1)."""

from flax import linen as nn
import jax

from crossattn_jax import parallel
from crossattn_jax.layers import convolution, module, pooling


class Block(module.Module):
  """3 x 3 convolutions with biases and ReLU, then a maximum pool that halves the map.

  Attributes:
    channels: of all convolutions.
    depth: how many.
  """

  channels: int
  depth: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels_in]` to half of height and width, rounded down."""
    del train
    for i in range(self.depth):
      conv = convolution.convolution(
        x.shape[-1], self.channels, 3, padding=1, name=f'conv_{i}', **self.types
      )
      x = nn.relu(conv(x))
    return parallel.constrain(pooling.max_pool(x, 2, 2), 'batch', 'height', 'width', 'channels')
