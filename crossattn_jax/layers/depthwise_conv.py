"""Depthwise convolution: every channel has its own small kernel.

The forms are jitted so that the many layers of equal shapes of a network share one trace.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.layers import initializers


def _padded(x: jax.Array, side: int) -> jax.Array:
  margin = (side // 2, side // 2)
  return jnp.pad(x, ((0, 0), margin, margin, (0, 0)))


@jax.jit
def _grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
  margin = (kernel.shape[0] // 2,) * 2
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding=(margin, margin),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


@jax.jit
def _grouped_gradients(
  x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  return jax.vjp(_grouped, x, kernel)[1](cotangent)


@jax.jit
def _shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The sum of shifted copies, one for each entry of the kernel."""
  height, width = x.shape[1:3]
  padded = _padded(x, kernel.shape[0])
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  out = jnp.zeros(x.shape, dtype)
  for i in range(kernel.shape[0]):
    for j in range(kernel.shape[1]):
      shifted = padded[:, i : i + height, j : j + width]
      out += shifted.astype(dtype) * kernel[i, j, 0].astype(dtype)
  return out.astype(x.dtype)


@jax.jit
def _shifted_gradients(
  x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The kernel's gradient adds up row by row: sums over whole maps miss every cache."""
  side, (height, width) = kernel.shape[0], x.shape[1:3]
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  padded = _padded(x, side)

  def add_row(sums, y):
    row = jax.lax.dynamic_slice_in_dim(cotangent, y, 1, axis=1).astype(dtype)
    inputs = jax.lax.dynamic_slice_in_dim(padded, y, side, axis=1).astype(dtype)
    return [total + inputs[:, :, j : j + width] * row for j, total in enumerate(sums)], None

  zeros = [jnp.zeros((x.shape[0], side, width, x.shape[-1]), dtype)] * side
  sums, _ = jax.lax.scan(add_row, zeros, jnp.arange(height))
  gradient = jnp.stack([total.sum((0, 2)) for total in sums], axis=1)[:, :, None]
  return _shifted(cotangent, kernel[::-1, ::-1]), gradient.astype(kernel.dtype)


@jax.custom_vjp
def depthwise_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves each channel with its own kernel, stride 1, zeros around the map.

  CPUs add up shifted copies, of which XLA's grouped convolution takes 10 to 50 times the time. TPUs
  take the convolution, which is estimated at half the cycles of the copies, and so do GPUs
  (`benchmarks/depthwise_conv.py`).

  Args:
    x: `[batch, height, width, channels]`.
    kernel: `[side, side, 1, channels]`, side odd, `x`'s dtype.

  Returns:
    `x`'s shape and dtype.
  """
  return jax.lax.platform_dependent(x, kernel, cpu=_shifted, default=_grouped)


def _forward(x, kernel):
  return depthwise_convolution(x, kernel), (x, kernel)


def _backward(residuals, cotangent):
  return jax.lax.platform_dependent(
    *residuals, cotangent, cpu=_shifted_gradients, default=_grouped_gradients
  )


depthwise_convolution.defvjp(_forward, _backward)


class DepthwiseConv(nn.Module):
  """`depthwise_convolution` with its parameters, initialised as torch does.

  Attributes:
    side: of the square kernel, odd.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  side: int
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    if self.side % 2 == 0:
      raise ValueError(f'a depthwise convolution needs an odd side, not {self.side}')
    init, channels = initializers.torch_convolution(self.side**2), x.shape[-1]
    kernel = self.param('kernel', init, (self.side, self.side, 1, channels), self.param_dtype)
    bias = self.param('bias', init, (channels,), self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    return depthwise_convolution(x, kernel) + bias
