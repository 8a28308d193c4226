"""The forms for CPUs: windows, as rows, times the kernel as a matrix, and gradients as products."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.kernels import products
from crossattn_jax.kernels.convolution import reference

# With fewer channels XLA:CPU's strided convolution takes five times as long as the product.
_FEW_CHANNELS = 8


@functools.partial(jax.jit, static_argnames=('geometry', 'precision'))
def convolution(
  x: jax.Array, kernel: jax.Array, geometry: reference.Geometry, precision: Any = None
) -> jax.Array:
  """`reference.convolution`, as a product where that is faster."""
  if geometry[0] > 1 and x.shape[-1] < _FEW_CHANNELS:
    return product(x, kernel, geometry, precision)
  return reference.convolution(x, kernel, geometry, precision)


@functools.partial(jax.jit, static_argnames=('geometry', 'precision'))
def gradients(
  x: jax.Array,
  kernel: jax.Array,
  cotangent: jax.Array,
  geometry: reference.Geometry,
  precision: Any = None,
) -> tuple[jax.Array, jax.Array]:
  """The gradients of `x` and `kernel`.

  XLA:CPU makes a convolution of that of the kernel, in which the map is the window and the batch
  the channels: of 1 x 1 kernels it takes three to five times as long as a product of matrices.
  """
  static = {'geometry': geometry, 'precision': precision}
  plain = geometry[0] == 1 and kernel.shape[:2] != (1, 1)
  form = reference.convolution if plain else product
  (of_x,) = jax.vjp(lambda x: form(x, kernel, **static), x)[1](cotangent)
  if plain:
    return of_x, _gradient_of_kernel(x, kernel, cotangent, **static)
  rows = _patches(x, kernel.shape[:2], geometry)
  # The narrower factor first: that is the one that XLA:CPU transposes.
  of_kernel = _contract_pixels(cotangent, rows, precision).T
  return of_x, of_kernel.reshape(kernel.shape).astype(kernel.dtype)


def product(
  x: jax.Array, kernel: jax.Array, geometry: reference.Geometry, precision: Any = None
) -> jax.Array:
  """`reference.convolution` as a product of patches."""
  return products.contract(
    _patches(x, kernel.shape[:2], geometry),
    kernel.reshape(-1, kernel.shape[-1]),
    precision=precision,
    preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
  ).astype(x.dtype)


def _patches(x: jax.Array, sides: tuple[int, int], geometry: reference.Geometry) -> jax.Array:
  """The windows of all places, `[batch, height, width, rows * columns * channels]`.

  Pixels are first gathered in blocks as wide as the stride, so that windows are made of slices.
  """
  stride, padding = geometry
  batch, *size, channels = x.shape
  out = [
    (length + sum(margins) - side) // stride + 1
    for length, margins, side in zip(size, padding, sides, strict=True)
  ]
  blocks = [length + (side - 1) // stride for length, side in zip(out, sides, strict=True)]
  # What no window reaches is cut off by negative padding.
  margins = [
    (before, count * stride - length - before, 0)
    for (before, _), count, length in zip(padding, blocks, size, strict=True)
  ]
  x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *margins, (0, 0, 0)))
  x = x.reshape(batch, blocks[0], stride, blocks[1], stride * channels)
  slices = [
    x[
      :,
      row // stride : row // stride + out[0],
      row % stride,
      column // stride : column // stride + out[1],
      : min(stride, sides[1] - column) * channels,
    ]
    for row in range(sides[0])
    for column in range(0, sides[1], stride)
  ]
  return jnp.concatenate(slices, axis=-1) if len(slices) > 1 else slices[0]


def _gradient_of_kernel(
  x: jax.Array,
  kernel: jax.Array,
  cotangent: jax.Array,
  geometry: reference.Geometry,
  precision: Any,
) -> jax.Array:
  """That of the kernel at stride 1: for each of its rows one product of `x` and the cotangent.

  The narrower of the two is put beside itself, shifted by each of the kernel's columns.
  """
  (top, _), (left, _) = geometry[1]
  rows, columns, channels, channels_out = kernel.shape
  narrow_input = channels < channels_out
  moving, resting = (x, cotangent) if narrow_input else (cotangent, x)
  height, width = resting.shape[1:3]

  def moved(y: jax.Array, axis: int, start: int, length: int) -> jax.Array:
    """Pixels from `start` on, zeros beyond the border."""
    margins = [(0, 0, 0)] * y.ndim
    margins[axis] = (-start, start + length - y.shape[axis], 0)
    return jax.lax.pad(y, jnp.zeros((), y.dtype), margins)

  sign = 1 if narrow_input else -1
  wide = jnp.concatenate(
    [moved(moving, 2, sign * (column - left), width) for column in range(columns)], axis=-1
  )
  results = []
  for row in range(rows):
    result = _contract_pixels(resting, moved(wide, 1, sign * (row - top), height), precision)
    result = result.reshape(resting.shape[-1], columns, moving.shape[-1])
    results.append(jnp.moveaxis(result, 0, 2 if narrow_input else 1))
  return jnp.stack(results).astype(kernel.dtype)


def _contract_pixels(x: jax.Array, y: jax.Array, precision: Any) -> jax.Array:
  """`[channels of x, channels of y]`, the sum over all pixels."""
  x, y = (z.reshape(-1, z.shape[-1]) for z in (x, y))
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  return jax.lax.dot_general(
    x, y, (((0,), (0,)), ((), ())), precision=precision, preferred_element_type=dtype
  )
