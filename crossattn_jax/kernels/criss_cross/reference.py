"""Criss-cross attention as the papers write it: what the other forms must equal.

Source: CCNet, Huang et al. 2019 (arXiv 1811.11721), section 3.2; its journal version for video.
"""

import jax
import jax.numpy as jnp


def affinity(query: jax.Array, key: jax.Array) -> jax.Array:
  """The affinity operation: products of every query with the keys along each axis of its map.

  Args:
    query: `[batch, *positions, channels]`.
    key: the same shape as `query`.

  Returns:
    `[batch, *positions, sum of positions]` in at least float32, not scaled, axis after axis: for an
    image first the column, then the row. A position meets itself along the last axis only; along
    the others it has -inf.
  """
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  last = query.ndim - 2
  scores = []
  for axis in range(1, query.ndim - 1):
    q, k = jnp.moveaxis(query, axis, -2), jnp.moveaxis(key, axis, -2)
    along = jnp.einsum('...qc,...kc->...qk', q, k, preferred_element_type=dtype)
    if axis != last:
      along = jnp.where(jnp.eye(query.shape[axis], dtype=bool), -jnp.inf, along)
    scores.append(jnp.moveaxis(along, -2, axis))
  return jnp.concatenate(scores, axis=-1)


def aggregation(weights: jax.Array, value: jax.Array) -> jax.Array:
  """The aggregation operation: the sum of the values along each axis, by their weights.

  Args:
    weights: `[batch, *positions, sum of positions]`, in the order of `affinity`.
    value: `[batch, *positions, channels]`.

  Returns:
    An array like `value`.
  """
  out, start = jnp.zeros((), value.dtype), 0
  for axis in range(1, value.ndim - 1):
    length = value.shape[axis]
    w = jnp.moveaxis(weights[..., start : start + length], axis, -2)
    v = jnp.moveaxis(value, axis, -2)
    out += jnp.moveaxis(jnp.einsum('...qk,...kc->...qc', w, v), -2, axis)
    start += length
  return out


def criss_cross_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """See `kernels.criss_cross_attention`."""
  return aggregation(jax.nn.softmax(affinity(query, key)).astype(value.dtype), value)
