"""Maxima over windows of a map."""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.kernels import dispatch

Margins = Sequence[tuple[int, int]]


def max_pool(x: jax.Array, side: int, stride: int, margins: Margins) -> jax.Array:
  """Maximum over square windows.

  Among equal maxima one gets the gradient; on CPUs they share it.

  Args:
    x: `[batch, height, width, channels]`.
    side: of the window.
    stride: in both directions.
    margins: before and after the rows and the columns, never the maximum.
  """
  return dispatch.by_platform(
    x, cpu=shifted, xla=reference, side=side, stride=stride, margins=margins
  )


def reference(x: jax.Array, side: int, stride: int, margins: Margins) -> jax.Array:
  """The definition."""
  return nn.max_pool(x, (side, side), (stride, stride), margins)


def shifted(x: jax.Array, side: int, stride: int, margins: Margins) -> jax.Array:
  """The form for CPUs, element-wise maxima of shifted maps.

  XLA's scatter takes many times as long for the gradient of the definition.
  """
  x = jnp.pad(x, ((0, 0), *margins, (0, 0)), constant_values=-jnp.inf)
  for axis in (1, 2):
    span = x.shape[axis] - side + 1
    copies = [jax.lax.slice_in_dim(x, start, start + span, stride, axis) for start in range(side)]
    x = functools.reduce(jnp.maximum, copies)
  return x
