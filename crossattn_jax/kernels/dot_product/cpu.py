"""Dot-product attention for CPUs: every product in the fastest of its transposed forms.

Scores are `[keys, queries]`: the softmax reduces over rows, and no product transposes them. Its
total is one more row of the product with the values, rather than another pass over the weights. The
backward pass, written out, divides by the total once.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def dot_product_attention(query, key, value, scale):
  """See `kernels.dot_product_attention`."""
  return _forward(query, key, value, scale)[0]


def _product(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
  """Contracts one axis of each, per example and head, in at least float32."""
  dtype = jnp.promote_types(a.dtype, jnp.float32)
  if a.shape[1] == 1:
    # XLA:CPU copies a product whose second axis has one head, to move that axis.
    numbers = (((axis_a - 1,), (axis_b - 1,)), ((0,), (0,)))
    product = jax.lax.dot_general(a[:, 0], b[:, 0], numbers, preferred_element_type=dtype)
    return product[:, None]
  numbers = (((axis_a,), (axis_b,)), ((0, 1), (0, 1)))
  return jax.lax.dot_general(a, b, numbers, preferred_element_type=dtype)


def _columns(x: jax.Array) -> jax.Array:
  return jnp.transpose(x, (0, 2, 3, 1))  # [batch, heads, head_dim, tokens]


def _rows(x: jax.Array) -> jax.Array:
  return jnp.transpose(x, (0, 2, 1, 3))  # [batch, heads, tokens, head_dim]


def _forward(query, key, value, scale):
  scores = _product(_columns(key), _columns(query * scale), 2, 2)
  weights = jnp.exp(scores - scores.max(axis=2, keepdims=True))
  ones = jnp.ones((*value.shape[:3], 1), value.dtype)
  sums = _product(_rows(jnp.concatenate([value, ones], 3)), weights.astype(value.dtype), 2, 2)
  out, total = sums[:, :, :-1], sums[:, :, -1:]
  out /= total
  result = jnp.transpose(out, (0, 3, 1, 2)).astype(value.dtype)
  return result, (query, key, value, weights, total, out)


def _backward(scale, residuals, d_out):
  query, key, value, weights, total, out = residuals
  d_out = _columns(d_out) / total
  delta = (d_out * out).sum(axis=2, keepdims=True)
  d_scores = weights * (_product(_columns(value).astype(d_out.dtype), d_out, 2, 2) - delta)
  d_query = _product(_rows(key).astype(d_out.dtype), d_scores, 2, 2) * scale
  d_key = _product(d_scores, _rows(query * scale).astype(d_out.dtype), 3, 2)
  d_value = _product(weights, jnp.swapaxes(d_out, 2, 3), 3, 2)
  return (
    jnp.transpose(d_query, (0, 3, 1, 2)).astype(query.dtype),
    _rows(d_key).astype(key.dtype),
    _rows(d_value).astype(value.dtype),
  )


dot_product_attention.defvjp(_forward, _backward)
