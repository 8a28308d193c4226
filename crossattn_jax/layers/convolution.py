"""Convolutions with torch's geometry and initialisation."""

from flax import linen as nn

from crossattn_jax import kernels
from crossattn_jax.layers import initializers


def convolution(
  channels_in: int, channels: int, side: int, *, stride: int = 1, padding: int = 0, **kwargs
) -> nn.Conv:
  """Builds a square convolution.

  `'SAME'` padding is not torch's: of even sizes it pads the right and the bottom only.

  Args:
    channels_in: of the input.
    channels: of the result.
    side: of the kernel.
    stride: in both directions.
    padding: zeros on each of the four sides.
    **kwargs: further arguments of `nn.Conv`: name, dtype, param_dtype, use_bias, kernel_init.

  Returns:
    The module, by default its kernel and bias uniform within +-1/sqrt(channels_in * side^2).
  """
  init = initializers.torch_convolution(channels_in * side**2)
  return nn.Conv(
    channels,
    kernel_size=(side, side),
    strides=(stride, stride),
    padding=((padding, padding),) * 2,
    **{
      'kernel_init': init,
      'bias_init': init,
      'conv_general_dilated': kernels.conv_general_dilated,
      **kwargs,
    },
  )
