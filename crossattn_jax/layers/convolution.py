"""Convolutions with torch's geometry and initialisation, in the form that a platform is fast at."""

from collections.abc import Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import kernels
from crossattn_jax.layers import initializers

_NHWC = ('NHWC', 'HWIO', 'NHWC')
# With fewer channels XLA:CPU's convolution takes five times as long as the product of patches.
_FEW_CHANNELS = 8

_Geometry = tuple[int, tuple[tuple[int, int], tuple[int, int]]]


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
    **kwargs: further arguments of `nn.Conv`: name, dtype, param_dtype, use_bias, kernel_init,
      conv_general_dilated.

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
      'conv_general_dilated': conv_general_dilated,
      **kwargs,
    },
  )


def conv_general_dilated(
  lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: Any, **kwargs: Any
) -> jax.Array:
  """`jax.lax.conv_general_dilated` for `nn.Conv(conv_general_dilated=...)`, faster on CPUs.

  Where windows are more than a pixel apart, CPUs take the gradients as products of patches with
  matrices, and the result too where the input has few channels: XLA:CPU's convolution takes two to
  five times as long (`benchmarks/strided_conv.py`). Anything else, other platforms and meshes of
  several devices take the convolution.
  """
  strides = set(window_strides)
  plain = all(
    kwargs.get(name) in (None, 1, (1, 1), [1, 1])
    for name in ('lhs_dilation', 'rhs_dilation', 'feature_group_count', 'batch_group_count')
  )
  numbers = kwargs.get('dimension_numbers')
  mesh = jax.sharding.get_abstract_mesh()
  if (
    lhs.ndim != 4
    or len(strides) != 1
    or strides == {1}
    or not plain
    or isinstance(padding, str)
    or numbers != jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
    or (not mesh.empty and mesh.size > 1)
  ):
    return jax.lax.conv_general_dilated(lhs, rhs, window_strides, padding, **kwargs)
  geometry = (strides.pop(), tuple(map(tuple, padding)))
  return _strided(lhs, rhs, geometry, kwargs.get('precision'))


def large_kernel_convolution(
  lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: Any, **kwargs: Any
) -> jax.Array:
  """`conv_general_dilated` for kernels several strides wide that have few output channels.

  The kernel is cut into slices one stride wide. One convolution applies them all, with as many
  times the output channels, and what they give is added up, each shifted by its place. For the 32
  x 32 patches of a CrossFormer, 12 channels, that is 8 slices and 96 channels: enough for matrix
  units and caches, where the kernel as it is leaves most of them idle.

  Args:
    lhs: `[batch, height, width, channels]`.
    rhs: `[rows, columns, channels, channels_out]`; the stride divides the columns.
    window_strides: equal ones.
    padding: zeros before and after the rows and the columns.
    **kwargs: of `jax.lax.conv_general_dilated`; no dilations and groups.

  Returns:
    What `jax.lax.conv_general_dilated` does.
  """
  stride = window_strides[1]
  rows, columns, channels, channels_out = rhs.shape
  slices = columns // stride
  if slices == 1:
    return conv_general_dilated(lhs, rhs, window_strides, padding, **kwargs)
  if columns % stride:
    raise ValueError(f'a kernel of {columns} columns does not divide into slices of {stride}')
  vertical, (left, right) = padding
  width = (lhs.shape[2] + left + right - columns) // stride + 1
  right = stride * (width + slices - 1) - left - lhs.shape[2]
  rhs = rhs.reshape(rows, slices, stride, channels, channels_out)
  rhs = jnp.moveaxis(rhs, 1, 3).reshape(rows, stride, channels, slices * channels_out)
  kwargs['dimension_numbers'] = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
  # On CPUs too, where patches of such kernels would be many times the image.
  out = jax.lax.conv_general_dilated(lhs, rhs, window_strides, (vertical, (left, right)), **kwargs)
  out = out.reshape(*out.shape[:3], slices, channels_out)
  return sum(out[:, :, i : i + width, i] for i in range(slices))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _strided(x: jax.Array, kernel: jax.Array, geometry: _Geometry, precision: Any) -> jax.Array:
  plain = functools.partial(_plain, geometry=geometry, precision=precision)
  if x.shape[-1] >= _FEW_CHANNELS:
    return plain(x, kernel)
  product = functools.partial(_product, geometry=geometry, precision=precision)
  return jax.lax.platform_dependent(x, kernel, cpu=product, default=plain)


def _forward(x, kernel, geometry, precision):
  return _strided(x, kernel, geometry, precision), (x, kernel)


def _backward(geometry, precision, residuals, cotangent):
  def gradients(form):
    form = functools.partial(form, geometry=geometry, precision=precision)
    return lambda x, kernel, cotangent: jax.vjp(form, x, kernel)[1](cotangent)

  return jax.lax.platform_dependent(
    *residuals, cotangent, cpu=gradients(_product), default=gradients(_plain)
  )


_strided.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnames=('geometry', 'precision'))
def _plain(x: jax.Array, kernel: jax.Array, geometry: _Geometry, precision: Any) -> jax.Array:
  stride, padding = geometry
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=_NHWC, precision=precision
  )


@functools.partial(jax.jit, static_argnames=('geometry', 'precision'))
def _product(x: jax.Array, kernel: jax.Array, geometry: _Geometry, precision: Any) -> jax.Array:
  """The product of each window's pixels, as a row, with the kernel as a matrix.

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
  return kernels.contract(
    patches,
    kernel.reshape(-1, kernel.shape[-1]),
    precision=precision,
    preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
  ).astype(x.dtype)
