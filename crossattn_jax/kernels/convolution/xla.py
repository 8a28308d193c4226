"""Forms that are better than the definition on every platform."""

from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.kernels import products
from crossattn_jax.kernels.convolution import reference


def windows(x: jax.Array, kernel: jax.Array, precision: Any = None) -> jax.Array:
  """A convolution of sentences, with stride 1 and no padding, as one product of matrices.

  Inside a loop XLA:CPU takes seven times as long for the gradients of the convolution.

  Args:
    x: `[batch, words, channels]`.
    kernel: `[side, channels, channels_out]`.
    precision: of the product.
  """
  side = len(kernel)
  count = x.shape[1] - side + 1
  phrases = jnp.concatenate([x[:, i : i + count] for i in range(side)], axis=-1)
  return products.contract(phrases, kernel.reshape(-1, kernel.shape[-1]), precision=precision)


def slices(
  x: jax.Array, kernel: jax.Array, geometry: reference.Geometry, precision: Any = None
) -> jax.Array:
  """A convolution whose kernel is several strides wide and has few output channels.

  The kernel is cut into slices one stride wide. One convolution applies them all, with as many
  times the output channels, and what they give is added up, each shifted by its place. For the 32
  x 32 patches of a CrossFormer, 12 channels, that is 8 slices and 96 channels: enough for matrix
  units and caches, where the kernel as it is leaves most of them idle. On CPUs too: the patches of
  such kernels are many times the image.
  """
  stride, (vertical, (left, right)) = geometry
  rows, columns, channels, channels_out = kernel.shape
  count = columns // stride
  width = (x.shape[2] + left + right - columns) // stride + 1
  right = stride * (width + count - 1) - left - x.shape[2]
  kernel = kernel.reshape(rows, count, stride, channels, channels_out)
  kernel = jnp.moveaxis(kernel, 1, 3).reshape(rows, stride, channels, count * channels_out)
  out = reference.convolution(x, kernel, (stride, (vertical, (left, right))), precision)
  out = out.reshape(*out.shape[:3], count, channels_out)
  return sum(out[:, :, i : i + width, i] for i in range(count))


def blocks(
  x: jax.Array, kernel: jax.Array, geometry: reference.Geometry
) -> tuple[jax.Array, jax.Array, reference.Geometry]:
  """A convolution at stride 1 that is the same: blocks of pixels, as wide as the stride, are one.

  With more channels and fewer taps it suits matrix units and caches. Kernel, padding and image must
  be whole blocks.

  Returns:
    The blocks of the image, of the kernel, and their geometry.
  """
  stride, padding = geometry
  channels, channels_out = kernel.shape[2:]
  batch, height, width = x.shape[0], *(length // stride for length in x.shape[1:3])
  x = x.reshape(batch, height, stride, width, stride * channels)
  x = jnp.concatenate([x[:, :, row] for row in range(stride)], axis=-1)
  rows, columns = (side // stride for side in kernel.shape[:2])
  kernel = kernel.reshape(rows, stride, columns, stride * channels, channels_out)
  kernel = jnp.swapaxes(kernel, 1, 2).reshape(rows, columns, -1, channels_out)
  (top, bottom), (left, right) = padding
  margins = ((top // stride, bottom // stride), (left // stride, right // stride))
  return x, kernel, (1, margins)
