"""Attention within groups for CPUs: few transpositions, a backward pass of five products."""

import functools

from einops import rearrange
import jax
import jax.numpy as jnp

from crossattn_jax.kernels.grouped import reference
from crossattn_jax.kernels.grouped.grouping import Grouping

# A padded map, and its groups with the heads before the tokens; see `Grouping.split`.
_MAP, _GROUPS = 'b (r g i) (s h j) (n d)', 'b (r s i j) n (g h) d'


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def grouped_attention(query, key, value, bias, grouping, num_heads, scale):
  """See `kernels.grouped_attention`, of padded maps."""
  return _forward(query, key, value, bias, grouping, num_heads, scale)[0]


def _to_groups(x: jax.Array, grouping: Grouping, num_heads: int) -> jax.Array:
  return rearrange(x, f'{_MAP} -> {_GROUPS}', n=num_heads, **grouping.lengths)


def _to_map(groups: jax.Array, grouping: Grouping) -> jax.Array:
  return rearrange(groups, f'{_GROUPS} -> {_MAP}', **grouping.lengths)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
  dtype = jnp.promote_types(a.dtype, jnp.float32)
  return jnp.einsum(equation, a, b, preferred_element_type=dtype)


def _forward(query, key, value, bias, grouping, num_heads, scale):
  query, key, value = (_to_groups(x, grouping, num_heads) for x in (query, key, value))
  scores = _product('bgnqd,bgnkd->bgnqk', query, key) * scale
  scores += reference.score_offset(bias, grouping.real_tokens(), scores.dtype)
  weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
  weights /= weights.sum(axis=-1, keepdims=True)
  out = _product('bgnqk,bgnkd->bgnqd', weights.astype(value.dtype), value)
  return _to_map(out.astype(value.dtype), grouping), (query, key, value, bias, weights, out)


def _backward(grouping, num_heads, scale, residuals, d_result):
  query, key, value, bias, weights, out = residuals
  dtype = weights.dtype
  d_out = _to_groups(d_result.astype(dtype), grouping, num_heads)
  delta = (d_out * out).sum(axis=-1, keepdims=True)
  d_scores = weights * (_product('bgnqd,bgnkd->bgnqk', d_out, value.astype(dtype)) - delta)
  d_bias = None if bias is None else d_scores.sum(axis=(0, 1)).astype(bias.dtype)
  d_scaled = d_scores * scale
  gradients = (
    _product('bgnqk,bgnkd->bgnqd', d_scaled, key.astype(dtype)),
    _product('bgnqk,bgnqd->bgnkd', d_scaled, query.astype(dtype)),
    _product('bgnqk,bgnqd->bgnkd', weights, d_out),
  )
  return *(_to_map(x.astype(value.dtype), grouping) for x in gradients), d_bias


grouped_attention.defvjp(_forward, _backward)
