"""The definition of depthwise convolution, as a grouped one, with its gradients.

The forms are jitted so that the many layers of equal shapes of a network share one trace.
"""

import functools

import jax


@functools.partial(jax.jit, static_argnums=2)
def forward(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """See `api.depthwise_convolution`."""
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
def backward(
  x: jax.Array, kernel: jax.Array, cotangent: jax.Array, stride: int = 1
) -> tuple[jax.Array, jax.Array]:
  """The gradients of `x` and `kernel`."""
  return jax.vjp(functools.partial(forward, stride=stride), x, kernel)[1](cotangent)
