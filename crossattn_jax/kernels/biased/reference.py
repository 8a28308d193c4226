"""Attention with a bias as defined."""

import jax
import jax.numpy as jnp

HIDDEN = -1e30


def biased_attention(query, key, value, bias, key_mask, *, num_heads, scale):
  """See `kernels.biased_attention`."""
  query, key, value = (x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value))
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum('bqnd,bknd->bnqk', query, key, preferred_element_type=dtype)
  scores = scores * scale + bias.astype(dtype)
  if key_mask is not None:
    scores = jnp.where(key_mask[:, None, None], scores, HIDDEN)
  weights = jax.nn.softmax(scores)
  out = jnp.einsum('bnqk,bknd->bqnd', weights.astype(value.dtype), value)
  return out.reshape(*out.shape[:2], -1)
