"""Depthwise convolution: every channel has its own small kernel.

The forms are jitted so that the many layers of equal shapes of a network share one trace.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.layers import initializers


def _padded(x: jax.Array, side: int) -> jax.Array:
  margin = (side // 2, side // 2)
  return jnp.pad(x, ((0, 0), margin, margin, (0, 0)))


def _strided(start: int, length: int, stride: int) -> slice:
  """The slice of `length` entries from `start` on, `stride` apart."""
  return slice(start, start + (length - 1) * stride + 1, stride)


def _sizes_out(x: jax.Array, stride: int) -> tuple[int, int]:
  height, width = x.shape[1:3]
  return -(-height // stride), -(-width // stride)


@functools.partial(jax.jit, static_argnums=2)
def _grouped(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  margin = (kernel.shape[0] // 2,) * 2
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=(margin, margin),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


@functools.partial(jax.jit, static_argnums=3)
def _grouped_gradients(
  x: jax.Array, kernel: jax.Array, cotangent: jax.Array, stride: int = 1
) -> tuple[jax.Array, jax.Array]:
  return jax.vjp(functools.partial(_grouped, stride=stride), x, kernel)[1](cotangent)


@functools.partial(jax.jit, static_argnums=2)
def _shifted(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """The sum of shifted copies, one for each entry of the kernel."""
  height, width = _sizes_out(x, stride)
  padded = _padded(x, kernel.shape[0])
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  out = jnp.zeros((x.shape[0], height, width, x.shape[3]), dtype)
  for i in range(kernel.shape[0]):
    for j in range(kernel.shape[1]):
      shifted = padded[:, _strided(i, height, stride), _strided(j, width, stride)]
      out += shifted.astype(dtype) * kernel[i, j, 0].astype(dtype)
  return out.astype(x.dtype)


@functools.partial(jax.jit, static_argnums=3)
def _shifted_gradients(
  x: jax.Array, kernel: jax.Array, cotangent: jax.Array, stride: int = 1
) -> tuple[jax.Array, jax.Array]:
  """The kernel's gradient adds up row by row: sums over whole maps miss every cache."""
  side, (height, width) = kernel.shape[0], _sizes_out(x, stride)
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  padded = _padded(x, side)

  def add_row(sums, y):
    row = jax.lax.dynamic_slice_in_dim(cotangent, y, 1, axis=1).astype(dtype)
    inputs = jax.lax.dynamic_slice_in_dim(padded, y * stride, side, axis=1).astype(dtype)
    return [
      total + inputs[:, :, _strided(j, width, stride)] * row for j, total in enumerate(sums)
    ], None

  zeros = [jnp.zeros((x.shape[0], side, width, x.shape[-1]), dtype)] * side
  sums, _ = jax.lax.scan(add_row, zeros, jnp.arange(height))
  gradient = jnp.stack([total.sum((0, 2)) for total in sums], axis=1)[:, :, None]
  if stride > 1:
    # The cotangent where the convolution was computed, zeros between.
    rest = [n - (m - 1) * stride - 1 for n, m in zip(x.shape[1:3], (height, width), strict=True)]
    spread = [(0, 0, 0), *((0, high, stride - 1) for high in rest), (0, 0, 0)]
    cotangent = jax.lax.pad(cotangent, jnp.zeros((), cotangent.dtype), spread)
  return _shifted(cotangent, kernel[::-1, ::-1]), gradient.astype(kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_convolution(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """Convolves each channel with its own kernel, zeros around the map.

  CPUs add up shifted copies, of which XLA's grouped convolution takes 10 to 50 times the time. TPUs
  take the convolution, which is estimated at half the cycles of the copies, and so do GPUs
  (`benchmarks/depthwise_conv.py`).

  Args:
    x: `[batch, height, width, channels]`.
    kernel: `[side, side, 1, channels]`, side odd, `x`'s dtype.
    stride: in both directions.

  Returns:
    `[batch, ceil(height / stride), ceil(width / stride), channels]` in `x`'s dtype.
  """
  return jax.lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_shifted, stride=stride),
    default=functools.partial(_grouped, stride=stride),
  )


def _forward(x, kernel, stride):
  return depthwise_convolution(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, cotangent):
  return jax.lax.platform_dependent(
    *residuals,
    cotangent,
    cpu=functools.partial(_shifted_gradients, stride=stride),
    default=functools.partial(_grouped_gradients, stride=stride),
  )


depthwise_convolution.defvjp(_forward, _backward)


class DepthwiseConv(nn.Module):
  """`depthwise_convolution` with its parameters.

  Attributes:
    side: of the square kernel, odd.
    use_bias: whether a bias is added.
    kernel_init: of the kernel; torch's default where None.
    bias_init: likewise.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  side: int
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer | None = None
  bias_init: nn.initializers.Initializer | None = None
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

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
      return depthwise_convolution(x, kernel)
    bias = self.param('bias', self.bias_init or init, (channels,), self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    return depthwise_convolution(x, kernel) + bias
