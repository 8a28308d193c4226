"""Criss-cross attention of maps whose rows are split over the devices of a mesh axis.

Rows attend to themselves on their device. For the columns, the devices exchange blocks (all-to-
all), so that each holds some columns whole, and exchange the results back. Nothing is ever
gathered: a map of any size fits on enough devices.
"""

import functools

import jax
import jax.numpy as jnp

from crossattn_jax.kernels.criss_cross import passes, xla

# Which holds the rows of a map: `parallel.constrain(x, ..., 'height', ...)`.
_ROWS_AXIS = 'sequence'


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attention(query: jax.Array, key: jax.Array, value: jax.Array, implementation: str) -> jax.Array:
  """`api.attention`, inside `shard_map`, of this device's rows."""
  return _forward(query, key, value, implementation)[0]


def _forward(query, key, value, implementation):
  *rows, (height, _) = _axes(query)
  local = passes.attend_along(query, key, value, rows, implementation=implementation)
  columns = (_to_columns(x, height) for x in (query, key, value))
  across = passes.attend(*columns, axis=height, itself=False, implementation=implementation)
  out, lse = xla.merge(local, tuple(_to_rows(x, height, query.shape[-2]) for x in across))
  return out, (query, key, value, out, lse)


def _backward(implementation, residuals, cotangent):
  query, key, value, _, lse = residuals
  *rows, (height, _) = _axes(query)
  local, delta = passes.attend_along_vjp(*residuals, cotangent, rows, implementation=implementation)
  *columns, column_delta = (
    _to_columns(x, height) for x in (query, key, value, lse, cotangent, delta)
  )
  across, _ = passes.attend_vjp(
    *columns, axis=height, itself=False, delta=column_delta, implementation=implementation
  )
  return tuple(a + _to_rows(b, height, query.shape[-2]) for a, b in zip(local, across, strict=True))


attention.defvjp(_forward, _backward)


def _axes(query: jax.Array) -> list[tuple[int, bool]]:
  """`passes.axes_of`, the rows' axis last."""
  return sorted(passes.axes_of(query), key=lambda axis: axis[0] == query.ndim - 3)


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
