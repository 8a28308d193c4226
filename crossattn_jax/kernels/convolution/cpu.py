"""The form for CPUs: windows, as rows, times the kernel as a matrix."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.kernels import products
from crossattn_jax.kernels.convolution import reference


@functools.partial(jax.jit, static_argnames=('geometry', 'precision'))
def convolution(
  x: jax.Array, kernel: jax.Array, geometry: reference.Geometry, precision: Any = None
) -> jax.Array:
  """`reference.convolution` as a product.

  Pixels are first gathered in blocks as wide as the stride, so that windows are made of slices.
  """
  stride, padding = geometry
  batch, *size, channels = x.shape
  sides = kernel.shape[:2]
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
  patches = jnp.concatenate(slices, axis=-1)
  return products.contract(
    patches,
    kernel.reshape(-1, kernel.shape[-1]),
    precision=precision,
    preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
  ).astype(x.dtype)
