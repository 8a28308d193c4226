"""The public function of depthwise convolution."""

import functools

import jax

from crossattn_jax.kernels import dispatch
from crossattn_jax.kernels.depthwise import cpu, reference


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

  Examples:
    >>> x, kernel = jnp.ones((1, 8, 8, 16)), jnp.ones((3, 3, 1, 16))
    >>> jax.eval_shape(lambda x: depthwise_convolution(x, kernel, stride=2), x).shape
    (1, 4, 4, 16)
  """
  return dispatch.by_platform(x, kernel, cpu=cpu.forward, xla=reference.forward, stride=stride)


def _forward(x, kernel, stride):
  return depthwise_convolution(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, cotangent):
  return dispatch.by_platform(
    *residuals, cotangent, cpu=cpu.backward, xla=reference.backward, stride=stride
  )


depthwise_convolution.defvjp(_forward, _backward)
