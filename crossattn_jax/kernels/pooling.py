"""Maxima over windows of a map."""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.kernels import dispatch

Margins = Sequence[tuple[int, int]]
Pair = tuple[int, int]


def max_pool(
  x: jax.Array, side: int | Pair, stride: int | Pair, margins: Margins = ((0, 0), (0, 0))
) -> jax.Array:
  """Maximum over windows.

  Among equal maxima of a window the first one gets the gradient.

  Args:
    x: `[batch, height, width, channels]`.
    side: height and width of the window, a number where they are equal.
    stride: of the rows and the columns, likewise.
    margins: before and after the rows and the columns, never the maximum.

  Examples:
    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), side=2, stride=2)[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
  """
  side, stride = ((n, n) if isinstance(n, int) else tuple(n) for n in (side, stride))
  margins = tuple(map(tuple, margins))
  return dispatch.by_platform(
    x, cpu=shifted, xla=reference, side=side, stride=stride, margins=margins
  )


def reference(x: jax.Array, side: Pair, stride: Pair, margins: Margins) -> jax.Array:
  """The definition."""
  return nn.max_pool(x, side, stride, margins)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def shifted(x: jax.Array, side: Pair, stride: Pair, margins: Margins) -> jax.Array:
  """The form for CPUs, element-wise maxima of shifted maps, along the columns and then the rows.

  XLA's scatter takes many times as long for the gradient of the definition.
  """
  x = _padded(x, margins)
  for axis in (2, 1):
    x = functools.reduce(jnp.maximum, _copies(x, axis, side, stride))
  return x


def _forward(x, side, stride, margins):
  x, sizes, winners = _padded(x, margins), x.shape[1:3], []
  for axis in (2, 1):
    best, *others = _copies(x, axis, side, stride)
    winner = jnp.zeros(best.shape, jnp.int32)
    for i, copy in enumerate(others, 1):
      winner = jnp.where(copy > best, i, winner)
      best = jnp.maximum(best, copy)
    # Else it is computed again wherever it is read.
    x, winner = jax.lax.optimization_barrier((best, winner))
    winners.append(winner)
  return x, (winners, sizes)


def _backward(side, stride, margins, residuals, gradient):
  (of_columns, of_rows), sizes = residuals
  for axis, winner in ((1, of_rows), (2, of_columns)):
    length, step, padded = (
      side[axis - 1],
      stride[axis - 1],
      sizes[axis - 1] + sum(margins[axis - 1]),
    )
    # Every `step`-th pixel is at the same places of the windows that it is in: `reach` at most.
    reach, count = -(-length // step), -(-padded // step)
    spread = [(0, 0, 0)] * gradient.ndim
    spread[axis] = (reach - 1, count - gradient.shape[axis], 0)
    gradient = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), spread)
    winner = jax.lax.pad(winner, jnp.int32(-1), spread)
    phases = []
    for phase in range(step):
      total = jnp.zeros((), gradient.dtype)
      for k in range(-(-(length - phase) // step)):
        start = reach - 1 - k
        won, passed = (
          jax.lax.slice_in_dim(y, start, start + count, axis=axis) for y in (winner, gradient)
        )
        total += jnp.where(won == phase + k * step, passed, 0)
      phases.append(jnp.broadcast_to(total, won.shape))
    gradient = jnp.stack(phases, axis + 1)
    gradient = gradient.reshape(*won.shape[:axis], count * step, *won.shape[axis + 1 :])
    gradient = jax.lax.slice_in_dim(gradient, 0, padded, axis=axis)
    gradient = jax.lax.optimization_barrier(gradient)
  (top, _), (left, _) = margins
  return (gradient[:, top : top + sizes[0], left : left + sizes[1]],)


shifted.defvjp(_forward, _backward)


def _padded(x: jax.Array, margins: Margins) -> jax.Array:
  return jnp.pad(x, ((0, 0), *margins, (0, 0)), constant_values=-jnp.inf)


def _copies(x: jax.Array, axis: int, side: Pair, stride: Pair) -> list[jax.Array]:
  """The first pixels of all windows along an axis, the second ones, and so on."""
  length, step = side[axis - 1], stride[axis - 1]
  span = x.shape[axis] - length + 1
  return [jax.lax.slice_in_dim(x, start, start + span, step, axis) for start in range(length)]
