"""The definition of a convolution, with its gradients."""

import functools
from typing import Any

import jax

# Stride of both directions; zeros before and after the rows and the columns.
Geometry = tuple[int, tuple[tuple[int, int], tuple[int, int]]]


@functools.partial(jax.jit, static_argnames=('geometry', 'precision'))
def convolution(
  x: jax.Array, kernel: jax.Array, geometry: Geometry, precision: Any = None
) -> jax.Array:
  """Convolves `[batch, height, width, channels]` with `[rows, columns, channels, channels_out]`."""
  stride, padding = geometry
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=numbers, precision=precision
  )


@functools.partial(jax.jit, static_argnames=('geometry', 'precision'))
def gradients(
  x: jax.Array,
  kernel: jax.Array,
  cotangent: jax.Array,
  geometry: Geometry,
  precision: Any = None,
) -> tuple[jax.Array, jax.Array]:
  """The gradients of `x` and `kernel`."""
  form = functools.partial(convolution, geometry=geometry, precision=precision)
  return jax.vjp(form, x, kernel)[1](cotangent)
