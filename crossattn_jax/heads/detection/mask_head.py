"""Which pixels of a region belong to its object.

Source: Mask R-CNN, He et al. 2017 (arXiv 1703.06870), section 3 and figure 4, right.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.heads import style
from crossattn_jax.layers import module


class Upsample(module.Module):
  """A transposed convolution of stride 2 with a kernel of side 2: every pixel becomes four.

  Attributes:
    channels: of the result.
    kernel_init: of the kernel `[2, 2, channels_in, channels]`.
  """

  channels: int
  kernel_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels_in]` to twice the height and width."""
    shape = (2, 2, x.shape[-1], self.channels)
    kernel = self.param('kernel', self.kernel_init, shape, self.param_dtype)
    bias = self.param('bias', nn.initializers.zeros, shape[-1:], self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    batch, height, width, _ = x.shape
    x = jnp.einsum('nhwi,yxio->nhywxo', x, kernel)
    return x.reshape(batch, 2 * height, 2 * width, self.channels) + bias


class MaskHead(module.Module):
  """Convolutions, upsampling, and a mask for every class.

  Attributes:
    num_classes: of the objects.
    channels: of the convolutions.
    num_convs: before the upsampling.
  """

  num_classes: int
  channels: int = 256
  num_convs: int = 4

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Looks at regions.

    Args:
      x: `[..., side, side, channels_in]`, a map of each region.

    Returns:
      Logits `[..., 2 * side, 2 * side, num_classes]` in at least float32, by which every pixel
      belongs to the region's object, were it of that class.
    """
    options = {'kernel_init': style.KAIMING_FAN_OUT, **self.types}
    regions, x = x.shape[:-3], x.reshape(-1, *x.shape[-3:])
    for i in range(self.num_convs):
      x = nn.relu(nn.Conv(self.channels, (3, 3), name=f'conv_{i}', **options)(x))
    x = nn.relu(Upsample(self.channels, name='upsample', **options)(x))
    x = nn.Conv(self.num_classes, (1, 1), name='classifier', **options)(x)
    x = x.reshape(*regions, *x.shape[1:])
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def of_class(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The mask of every region's class: of `[..., side, side, classes]` and `[...]`."""
  # A sum, whose gradient is no scatter.
  is_class = nn.one_hot(labels, logits.shape[-1], dtype=bool)[..., None, None, :]
  return jnp.sum(jnp.where(is_class, logits, 0), axis=-1)
