"""Depthwise convolution: every channel has its own small kernel."""

from flax import linen as nn
import jax

from crossattn_jax import kernels
from crossattn_jax.layers import initializers, module


class DepthwiseConv(module.Module):
  """`kernels.depthwise_convolution` with its parameters.

  Attributes:
    side: of the square kernel, odd.
    use_bias: whether a bias is added.
    kernel_init: of the kernel; torch's default where None.
    bias_init: likewise.
  """

  side: int
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer | None = None
  bias_init: nn.initializers.Initializer | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    if self.side % 2 == 0:
      raise ValueError(f'a depthwise convolution needs an odd side, not {self.side}')
    init, channels = initializers.torch_convolution(self.side**2), x.shape[-1]
    shape = (self.side, self.side, 1, channels)
    kernel = self.param('kernel', self.kernel_init or init, shape, self.param_dtype)
    if not self.use_bias:
      x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
      return kernels.depthwise_convolution(x, kernel)
    bias = self.param('bias', self.bias_init or init, (channels,), self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    return kernels.depthwise_convolution(x, kernel) + bias
