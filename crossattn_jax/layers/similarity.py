"""Lengths and products of embeddings."""

import jax
import jax.numpy as jnp


def l2_normalize(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
  """Divides by max(length, epsilon) along the last axis, in at least float32; zeros stay zeros.

  Args:
    x: `[..., channels]`.
    epsilon: the shortest length that becomes 1.

  Returns:
    Of the same shape. Its gradient is finite at zero, where that of the norm is not.
  """
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  squares = jnp.sum(x**2, axis=-1, keepdims=True)
  return x / jnp.sqrt(jnp.maximum(squares, epsilon**2))


def dot_products(a: jax.Array, b: jax.Array) -> jax.Array:
  """All products of two sets of embeddings, as exact as their dtype.

  By default TPUs and GPUs round the factors of such a product: what is closest would change.

  Args:
    a: `[rows, channels]`.
    b: `[columns, channels]`.

  Returns:
    `[rows, columns]`.
  """
  return jnp.einsum('ic,jc->ij', a, b, precision=jax.lax.Precision.HIGHEST)
