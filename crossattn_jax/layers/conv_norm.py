"""Convolution, batch norm, activation: the unit that convolutional networks are built of."""

from collections.abc import Callable

from flax import linen as nn
import jax

from crossattn_jax import kernels
from crossattn_jax.layers import batch_norm, initializers, module

Activation = Callable[[jax.Array], jax.Array]


class ConvNorm(module.Module):
  """A convolution padded by half of its dilated kernel, a batch norm and an activation.

  Attributes:
    channels: of the result.
    side: of the kernel. An odd one leaves the size to the stride, an even one takes a pixel of it.
    stride: in both directions.
    dilation: distance of the kernel's taps.
    groups: of channels that see only each other.
    use_bias: of the convolution.
    activation: after the norm; None for none.
    absolute_scale: of the norm; see `BatchNorm`.
    momentum: share of the norm's old running statistics that stays, 1 minus PyTorch's.
    epsilon: added to the norm's variance.
    kernel_init: of the convolution; torch's default where None.
    padding: pixels around the input; half of the dilated kernel where None.

  Examples:
    >>> layer, x = ConvNorm(32), jnp.ones((1, 8, 8, 3))
    >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape
    (1, 8, 8, 32)
  """

  channels: int
  side: int = 1
  stride: int = 1
  dilation: int = 1
  groups: int = 1
  use_bias: bool = False
  activation: Activation | None = nn.relu
  absolute_scale: bool = False
  momentum: float = 0.9
  epsilon: float = 1e-5
  kernel_init: nn.initializers.Initializer | None = None
  padding: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels_in]` to its size divided by the stride."""
    margin = self.dilation * ((self.side - 1) // 2) if self.padding is None else self.padding
    init = initializers.torch_convolution(x.shape[-1] // self.groups * self.side**2)
    x = nn.Conv(
      self.channels,
      kernel_size=(self.side, self.side),
      strides=(self.stride, self.stride),
      padding=((margin, margin),) * 2,
      kernel_dilation=(self.dilation, self.dilation),
      feature_group_count=self.groups,
      use_bias=self.use_bias,
      kernel_init=self.kernel_init or init,
      bias_init=init,
      conv_general_dilated=kernels.conv_general_dilated,
      name='conv',
      **self.types,
    )(x)
    x = batch_norm.BatchNorm(
      self.momentum, self.epsilon, self.absolute_scale, name='norm', **self.types
    )(x, train)
    return x if self.activation is None else self.activation(x)
