"""The attention of one axis of a map, and how the axes share one softmax.

Every implementation offers the same two functions, which this module chooses between.

`attend` attends along one axis and returns the output and the log-sum-exp of its scores; given
those of the axes before, it returns both of them together.

`attend_vjp` returns the gradients through one axis from the log-sum-exp over *all* axes and delta =
sum(cotangent * output): P = exp(s - lse), ds = P (cotangent . v - delta). Given the gradients of
the axes before, it adds to them.

No line of a map (a row, a column) needs another one, forward or backward. So nothing is scattered,
and lines may be split over devices.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.kernels import dispatch
from crossattn_jax.kernels.criss_cross import gpu, tpu, xla

Output = tuple[jax.Array, jax.Array]
Gradients = tuple[jax.Array, jax.Array, jax.Array]


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  axis: int,
  itself: bool,
  previous: Output | None = None,
  implementation: str = 'auto',
  interpret: bool = False,
) -> Output:
  """Attends along one axis.

  Args:
    query: `[batch, *positions, channels]`.
    key: the same shape as `query`.
    value: `[batch, *positions, value channels]`.
    axis: along which positions meet.
    itself: whether a position meets itself.
    previous: what this function returned for the axes before.
    implementation: 'auto', 'xla', 'tpu' or 'gpu'.
    interpret: runs a kernel in the interpreter, for tests.

  Returns:
    The output `[batch, *positions, value channels]` in `value`'s dtype and the log-sum-exp
    `[batch, *positions]` of its scores in at least float32, the axes before included. Where there
    is nothing to attend to the log-sum-exp is very negative and the output is arbitrary, finite.
  """
  return _choose('attend', (query, key, value, previous), axis, itself, implementation, interpret)


def attend_vjp(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  lse: jax.Array,
  cotangent: jax.Array,
  *,
  axis: int,
  itself: bool,
  out: jax.Array | None = None,
  delta: jax.Array | None = None,
  previous: Gradients | None = None,
  implementation: str = 'auto',
  interpret: bool = False,
) -> tuple[Gradients, jax.Array]:
  """The gradients of query, key and value through one axis.

  Args:
    query: see `attend`.
    key: see `attend`.
    value: see `attend`.
    lse: `[batch, *positions]`, of the scores of all axes.
    cotangent: of the output of all axes.
    axis: see `attend`.
    itself: see `attend`.
    out: the output of all axes; only where there is no `delta` yet.
    delta: `[batch, *positions]`, sum over channels of `cotangent * out`.
    previous: gradients of the axes before, which are added.
    implementation: see `attend`.
    interpret: see `attend`.

  Returns:
    The gradients of query, key and value, in their dtypes, and `delta`.
  """
  arrays = (query, key, value, lse, cotangent, out, delta, previous)
  return _choose('attend_vjp', arrays, axis, itself, implementation, interpret)


def attend_along(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  axes: Sequence[tuple[int, bool]],
  **options: Any,
) -> Output:
  """`attend` along some of `axes_of` together."""
  result = None
  for axis, itself in axes:
    result = attend(query, key, value, axis=axis, itself=itself, previous=result, **options)
  return result


def attend_along_vjp(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  out: jax.Array,
  lse: jax.Array,
  cotangent: jax.Array,
  axes: Sequence[tuple[int, bool]],
  **options: Any,
) -> tuple[Gradients, jax.Array]:
  """`attend_vjp` along some of `axes_of` together; `out` and `lse` are of all."""
  gradients = delta = None
  for axis, itself in axes:
    gradients, delta = attend_vjp(
      query,
      key,
      value,
      lse,
      cotangent,
      axis=axis,
      itself=itself,
      out=out if delta is None else None,
      delta=delta,
      previous=gradients,
      **options,
    )
  return gradients, delta


def axes_of(query: jax.Array) -> list[tuple[int, bool]]:
  """The axes of a map, the last one first, and whether a position meets itself along them."""
  last = query.ndim - 2
  return [(axis, axis == last) for axis in range(last, 0, -1)]


def _choose(
  function: str,
  arrays: Sequence[Any],
  axis: int,
  itself: bool,
  implementation: str,
  interpret: bool,
) -> Any:
  static = {'axis': axis, 'itself': itself}
  forms: dict[str, Callable[..., Any]] = {
    'xla': functools.partial(getattr(xla, function), **static),
    'tpu': functools.partial(getattr(tpu, function), **static, interpret=interpret),
    'gpu': functools.partial(getattr(gpu, function), **static, interpret=interpret),
  }
  if implementation != 'auto':
    return forms[implementation](*arrays)
  if arrays[0].dtype not in (jnp.float32, jnp.bfloat16):
    return forms['xla'](*arrays)
  return dispatch.by_platform(*arrays, **forms)
