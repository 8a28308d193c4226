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
  """Contracts one of the last two axes of each, in at least float32."""
  dtype = jnp.promote_types(a.dtype, jnp.float32)
  first = tuple(range(a.ndim - 2))
  numbers = (((a.ndim + axis_a,), (b.ndim + axis_b,)), (first, first))
  return jax.lax.dot_general(a, b, numbers, preferred_element_type=dtype)


def _columns(x: jax.Array) -> jax.Array:
  return _squeezed(jnp.transpose(x, (0, 2, 3, 1)))  # [batch, heads, head_dim, tokens]


def _rows(x: jax.Array) -> jax.Array:
  return _squeezed(jnp.transpose(x, (0, 2, 1, 3)))  # [batch, heads, tokens, head_dim]


def _squeezed(x: jax.Array) -> jax.Array:
  """Without the axis of one head: XLA:CPU would copy the scores, to move it."""
  return x[:, 0] if x.shape[1] == 1 else x


def _tokens_first(x: jax.Array, axis: int, dtype: jnp.dtype) -> jax.Array:
  """To `[batch, tokens, heads, head_dim]`, tokens being the axis -1 or -2."""
  x = x[:, None] if x.ndim == 3 else x
  return jnp.transpose(x, (0, 3, 1, 2) if axis == -1 else (0, 2, 1, 3)).astype(dtype)


def _forward(query, key, value, scale):
  scores = _product(_columns(key), _columns(query * scale), -2, -2)
  weights = jnp.exp(scores - scores.max(axis=-2, keepdims=True))
  if value.dtype == weights.dtype:
    ones = jnp.ones((*value.shape[:3], 1), value.dtype)
    sums = _product(_rows(jnp.concatenate([value, ones], axis=3)), weights, -2, -2)
    out, total = sums[..., :-1, :], sums[..., -1:, :]
  else:  # In half precision the weights of the product are rounded, the total is not.
    out = _product(_rows(value), weights.astype(value.dtype), -2, -2)
    total = weights.sum(axis=-2, keepdims=True)
  out /= total
  return _tokens_first(out, -1, value.dtype), (query, key, value, weights, total, out)


def _backward(scale, residuals, d_out):
  query, key, value, weights, total, out = residuals
  d_out = _columns(d_out) / total
  delta = (d_out * out).sum(axis=-2, keepdims=True)
  d_scores = weights * (_product(_columns(value).astype(d_out.dtype), d_out, -2, -2) - delta)
  d_query = _product(_rows(key).astype(d_out.dtype), d_scores, -2, -2) * scale
  d_key = _product(d_scores, _rows(query * scale).astype(d_out.dtype), -1, -2)
  d_value = _product(weights, jnp.swapaxes(d_out, -1, -2), -1, -2)
  return (
    _tokens_first(d_query, -1, query.dtype),
    _tokens_first(d_key, -2, key.dtype),
    _tokens_first(d_value, -2, value.dtype),
  )


dot_product_attention.defvjp(_forward, _backward)
