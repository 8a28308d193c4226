"""The public function of convolutions: which form one takes, and its gradients."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import numpy as np

from crossattn_jax.kernels import dispatch
from crossattn_jax.kernels.convolution import cpu, reference, xla

_CHANNELS_LAST = {3: ('NWC', 'WIO', 'NWC'), 4: ('NHWC', 'HWIO', 'NHWC')}
# Of images under kernels several strides wide, which `xla.slices` takes.
_FEW_CHANNELS = 8


def conv_general_dilated(
  lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: Any, **kwargs: Any
) -> jax.Array:
  """`jax.lax.conv_general_dilated` for `nn.Conv(conv_general_dilated=...)`, in faster forms.

  - Sentences, at stride 1 and without padding: `xla.windows`.
  - Images under kernels several strides wide: `xla.slices`, or `xla.blocks` where that can be.
  - Other windows, on one device: CPUs take the gradients as products of matrices, and the result
    too where the input has few channels and windows are more than a pixel apart. XLA:CPU takes up
    to five times as long for the convolution (`benchmarks/convolutions.py`).
  - Anything else is the convolution.
  """
  stride, precision = window_strides[0], kwargs.get('precision')
  plain = (
    lhs.ndim in _CHANNELS_LAST
    and not isinstance(padding, str)
    and kwargs.get('preferred_element_type') is None
    and kwargs.get('dimension_numbers')
    == jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, _CHANNELS_LAST[lhs.ndim])
    and set(window_strides) == {stride}
    and all(
      np.all(np.equal(kwargs.get(name) or 1, 1))
      for name in ('lhs_dilation', 'rhs_dilation', 'feature_group_count', 'batch_group_count')
    )
  )
  if plain and lhs.ndim == 3 and stride == 1 and not np.any(padding):
    return xla.windows(lhs, rhs, precision)
  if plain and lhs.ndim == 4:
    geometry = (stride, tuple(map(tuple, padding)))
    columns, channels = rhs.shape[1:3]
    if channels < _FEW_CHANNELS and 1 < stride < columns and columns % stride == 0:
      whole = (*lhs.shape[1:3], *rhs.shape[:2], *np.ravel(padding))
      if any(length % stride for length in whole):
        return xla.slices(lhs, rhs, geometry, precision)
      lhs, rhs, geometry = xla.blocks(lhs, rhs, geometry)
      window_strides, padding = (1, 1), geometry[1]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
      return _convolution(lhs, rhs, geometry, precision)
  return jax.lax.conv_general_dilated(lhs, rhs, window_strides, padding, **kwargs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(
  x: jax.Array, kernel: jax.Array, geometry: reference.Geometry, precision: Any
) -> jax.Array:
  return dispatch.by_platform(
    x,
    kernel,
    cpu=cpu.convolution,
    xla=reference.convolution,
    geometry=geometry,
    precision=precision,
  )


def _forward(x, kernel, geometry, precision):
  return _convolution(x, kernel, geometry, precision), (x, kernel)


def _backward(geometry, precision, residuals, cotangent):
  return dispatch.by_platform(
    *residuals,
    cotangent,
    cpu=cpu.gradients,
    xla=reference.gradients,
    geometry=geometry,
    precision=precision,
  )


_convolution.defvjp(_forward, _backward)
