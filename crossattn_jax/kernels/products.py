"""Products of activations with the kernels of linear layers, in the forms that are fast.

A TPU lays out the last two axes of an array in tiles of 8 x 128. Heads that are an axis of their
own therefore take four times the memory where each has 32 channels, and going from one layout to
the other is a copy. So the channels of all heads stay side by side, in one axis, from the
projections to the attention's kernel, and at the borders of `shard_map` in between.
"""

from collections.abc import Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.kernels import dispatch

# Rows of the product with ones that adds up gradients. XLA makes a sum of one row again.
_SUMS = 8


def contract(
  x: jax.Array, kernel: jax.Array, axes: Sequence[int] = (-1,), **options: Any
) -> jax.Array:
  """Contracts axes of activations with the first of a kernel, as one product of two matrices.

  XLA:CPU copies both factors of the kernel's gradient where the product has several axes of rows:
  an MLP's forward and backward pass take 1.25 times as long. Under a mesh of several devices the
  axes stay apart, since they may be split; but heads and their channels are one axis there too.

  Args:
    x: `[..., *contracted]`; or contracted axes elsewhere, and the product is none of matrices.
    kernel: `[*contracted, ...]`.
    axes: of `x`.
    **options: of `jax.lax.dot_general`.

  Returns:
    The product, `[..., ...]`.
  """
  axes = tuple(axis % x.ndim for axis in axes)
  first = tuple(range(len(axes)))
  rows, columns = x.shape[: x.ndim - len(axes)], kernel.shape[len(axes) :]
  if axes != tuple(range(len(rows), x.ndim)):
    return jax.lax.dot_general(x, kernel, ((axes, first), ((), ())), **options)
  width = math.prod(x.shape[len(rows) :])
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.size > 1:
    x, kernel = x.reshape(*rows, width), kernel.reshape(width, *columns)
    return jax.lax.dot_general(x, kernel, (((len(rows),), (0,)), ((), ())), **options)
  x, kernel = x.reshape(math.prod(rows), width), kernel.reshape(width, math.prod(columns))
  product = jax.lax.dot_general(x, kernel, (((1,), (0,)), ((), ())), **options)
  return product.reshape(*rows, *columns)


def project_apart(
  x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None
) -> tuple[jax.Array, ...]:
  """The linear maps of `layers.linear.Projections`, their results for a kernel on a TPU.

  There each map is a product of its own: to split the result of one takes a TPU longer than to read
  the input three times. Elsewhere it is one product.

  Args:
    x: `[..., channels]`.
    kernel: `[channels, parts, num_heads, head_dim]`, in `x`'s dtype.
    bias: `[parts, num_heads, head_dim]`, the same.

  Returns:
    For each part `[..., num_heads * head_dim]`.
  """
  parts, width = kernel.shape[1], math.prod(kernel.shape[2:])

  def product(x, kernel, bias):
    out = contract(x, kernel)
    out = out if bias is None else out + bias
    # Not a moved axis: the gradient of a split is one concatenation, which CPUs do faster.
    return tuple(part.reshape(*x.shape[:-1], width) for part in jnp.split(out, parts, axis=-3))

  return dispatch.by_platform(x, kernel, bias, tpu=project_each, xla=product)


def project_each(
  x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None
) -> tuple[jax.Array, ...]:
  """The form of `project_apart` for TPUs, for where the platform is decided already."""
  parts, width = kernel.shape[1], math.prod(kernel.shape[2:])
  kernels = kernel.reshape(len(kernel), parts, width)
  biases = [None] * parts if bias is None else bias.reshape(parts, width)
  return tuple(project_for_kernel(x, kernels[:, i], biases[i]) for i in range(parts))


def project_for_kernel(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
  """A linear map whose result goes into a kernel on a TPU.

  The gradient that comes out of a kernel is fused with nothing, and XLA's sum of it over all
  tokens, for the bias, takes longer than the product itself: 262,000 cycles for bfloat16 `[50176,
  192]` on a v5e, where a product with ones takes as long as reading it (35,000). Elsewhere XLA
  makes the sum along with what comes before, and `Dense` leaves it to that.

  Args:
    x: `[..., channels]`.
    kernel: `[channels, features]`, in `x`'s dtype.
    bias: `[features]`, the same.

  Returns:
    `[..., features]`.
  """
  out = jnp.dot(x, kernel)
  return out if bias is None else _add_bias(out, bias)


@jax.custom_vjp
def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  return x + bias


def _backward(_, gradient):
  axes = tuple(range(gradient.ndim - 1))
  ones = jnp.ones((*gradient.shape[:-1], _SUMS), gradient.dtype)
  sums = jax.lax.dot_general(
    ones,
    gradient,
    ((axes, axes), ((), ())),
    precision='highest',
    preferred_element_type=jnp.promote_types(gradient.dtype, jnp.float32),
  )
  return gradient, sums[0].astype(gradient.dtype)


_add_bias.defvjp(lambda x, bias: (x + bias, None), _backward)
