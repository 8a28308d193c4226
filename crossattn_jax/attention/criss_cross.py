"""Criss-cross attention: every pixel attends to its row and its column under one softmax.

Source: CCNet, Huang et al. 2019 (arXiv 1811.11721), section 3.2; for video its journal version.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import kernels, parallel
from crossattn_jax.kernels.criss_cross import passes, reference
from crossattn_jax.layers import linear

# Which holds the rows of a map: `parallel.constrain(x, ..., 'height', ...)`.
_ROWS_AXIS = 'sequence'


def criss_cross_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, *, implementation: str = 'auto'
) -> jax.Array:
  """`kernels.criss_cross_attention` under the ambient mesh: batch and rows stay where they are.

  Where rows are split over the mesh axis `sequence`, rows attend to themselves on their device. For
  the columns, the devices exchange blocks (all-to-all), so that each holds some columns whole, and
  exchange the results back. Nothing is ever gathered: a map of any size fits on enough devices.

  Args:
    query: see `kernels.criss_cross_attention`.
    key: see `kernels.criss_cross_attention`.
    value: see `kernels.criss_cross_attention`.
    implementation: see `kernels.criss_cross_attention`.

  Returns:
    An array like `value`.

  Raises:
    ValueError: see `kernels.criss_cross_attention`.
  """
  if query.ndim not in (4, 5):  # Let it say so.
    return kernels.criss_cross_attention(query, key, value, implementation=implementation)
  height = query.shape[-3]

  def attend(query, key, value):
    if query.shape[-3] == height:
      return kernels.criss_cross_attention(query, key, value, implementation=implementation)
    return _attend_split(query, key, value, implementation)

  names = ('batch', *(None,) * (query.ndim - 4), 'height', None, None)
  return parallel.map_shards(
    attend, query, key, value, names=(names, names, names), out_names=names
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend_split(query, key, value, implementation):
  return _attend_split_forward(query, key, value, implementation)[0]


def _attend_split_forward(query, key, value, implementation):
  height_axis = query.ndim - 3
  local = None
  for axis, itself in passes.axes_of(query):
    if axis != height_axis:
      local = passes.attend(
        query,
        key,
        value,
        axis=axis,
        itself=itself,
        previous=local,
        implementation=implementation,
      )
  columns = [_to_columns(x, height_axis) for x in (query, key, value)]
  across = passes.attend(*columns, axis=height_axis, itself=False, implementation=implementation)
  out, lse = passes.merge(local, tuple(_to_rows(x, height_axis, query.shape[-2]) for x in across))
  return out, (query, key, value, out, lse)


def _attend_split_backward(implementation, residuals, cotangent):
  query, key, value, out, lse = residuals
  height_axis = query.ndim - 3
  local = delta = None
  for axis, itself in passes.axes_of(query):
    if axis != height_axis:
      local, delta = passes.attend_vjp(
        query,
        key,
        value,
        lse,
        cotangent,
        axis=axis,
        itself=itself,
        out=out if delta is None else None,
        delta=delta,
        previous=local,
        implementation=implementation,
      )
  *columns, column_delta = [
    _to_columns(x, height_axis) for x in (query, key, value, lse, cotangent, delta)
  ]
  across, _ = passes.attend_vjp(
    *columns,
    axis=height_axis,
    itself=False,
    delta=column_delta,
    implementation=implementation,
  )
  return tuple(
    a + _to_rows(b, height_axis, query.shape[-2]) for a, b in zip(local, across, strict=True)
  )


_attend_split.defvjp(_attend_split_forward, _attend_split_backward)


def _to_columns(x: jax.Array, height_axis: int) -> jax.Array:
  """From some rows to some columns, those that make the number even included."""
  width_axis = height_axis + 1
  devices = jax.lax.axis_size(_ROWS_AXIS)
  extra = -x.shape[width_axis] % devices
  x = jnp.pad(x, [(0, extra if axis == width_axis else 0) for axis in range(x.ndim)])
  return jax.lax.all_to_all(x, _ROWS_AXIS, width_axis, height_axis, tiled=True)


def _to_rows(x: jax.Array, height_axis: int, width: int) -> jax.Array:
  """The inverse of `_to_columns`."""
  width_axis = height_axis + 1
  x = jax.lax.all_to_all(x, _ROWS_AXIS, height_axis, width_axis, tiled=True)
  return jax.lax.slice_in_dim(x, 0, width, axis=width_axis)


class CrissCrossAttention(nn.Module):
  """Recurrent criss-cross attention with a learnt residual gate.

  Twice connects any two pixels of an image, three times any two of a video.

  Attributes:
    recurrence: how often the same parameters are applied.
    reduction: channels of the value per channel of query and key.
    implementation: see `kernels.criss_cross_attention`.
    kernel_init: of the projections.
    bias_init: of the projections.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  recurrence: int = 2
  reduction: int = 8
  implementation: str = 'auto'
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool = False, with_weights: bool = False
  ) -> jax.Array | tuple[jax.Array, list[jax.Array]]:
    """Maps `[batch, height, width, channels]`, or `[batch, time, ...]`, to the same shape.

    Args:
      x: the map.
      train: of no effect.
      with_weights: whether to return the attention weights of each application too, `[batch,
        height, width, height + width]`: over the column, then over the row.
    """
    del train
    channels = x.shape[-1]
    if channels % self.reduction:
      raise ValueError(f'reduction={self.reduction} does not divide the width {channels}')
    common = {
      'kernel_init': self.kernel_init,
      'bias_init': self.bias_init,
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    query = linear.Dense(channels // self.reduction, name='query', **common)
    key = linear.Dense(channels // self.reduction, name='key', **common)
    value = linear.Dense(channels, name='value', **common)
    gate = self.param('gate', nn.initializers.zeros, (), self.param_dtype)
    weights = []
    for _ in range(self.recurrence):
      q, k = query(x), key(x)
      if with_weights:
        weights.append(nn.softmax(reference.criss_cross_scores(q, k)))
      context = criss_cross_attention(q, k, value(x), implementation=self.implementation)
      x, context, scale = nn.dtypes.promote_dtype(x, context, gate, dtype=self.dtype)
      x = x + scale * context
    return (x, weights) if with_weights else x
