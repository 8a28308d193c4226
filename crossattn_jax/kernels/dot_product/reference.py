"""Dot-product attention as defined.

Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.1, equation 1.
"""

from flax import linen as nn
import jax.numpy as jnp


def dot_product_attention(query, key, value, scale, mask=None, dropout=None):
  """See `kernels.dot_product_attention`."""
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum('bqhd,bkhd->bhqk', query, key, preferred_element_type=dtype)
  scores *= scale
  if mask is not None:
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(dtype).min)
  weights = nn.softmax(scores)
  used = (weights if dropout is None else dropout(weights)).astype(value.dtype)
  return jnp.einsum('bhqk,bkhd->bqhd', used, value)
