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

  Among equal maxima one gets the gradient; on CPUs they share it.

  Args:
    x: `[batch, height, width, channels]`.
    side: height and width of the window, a number where they are equal.
    stride: of the rows and the columns, likewise.
    margins: before and after the rows and the columns, never the maximum.
  """
  side, stride = ((n, n) if isinstance(n, int) else tuple(n) for n in (side, stride))
  return dispatch.by_platform(
    x, cpu=shifted, xla=reference, side=side, stride=stride, margins=margins
  )


def reference(x: jax.Array, side: Pair, stride: Pair, margins: Margins) -> jax.Array:
  """The definition."""
  return nn.max_pool(x, side, stride, margins)


def shifted(x: jax.Array, side: Pair, stride: Pair, margins: Margins) -> jax.Array:
  """The form for CPUs, element-wise maxima of shifted maps.

  XLA's scatter takes many times as long for the gradient of the definition.
  """
  x = jnp.pad(x, ((0, 0), *margins, (0, 0)), constant_values=-jnp.inf)
  for axis, length, step in zip((1, 2), side, stride, strict=True):
    span = x.shape[axis] - length + 1
    copies = [jax.lax.slice_in_dim(x, start, start + span, step, axis) for start in range(length)]
    x = functools.reduce(jnp.maximum, copies)
  return x
