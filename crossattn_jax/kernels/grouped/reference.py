"""Attention within groups as defined: sort the map into groups, attend in each."""

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import parallel

# Added to the scores of padded keys. Finite: a group may hold nothing but padding.
_MASKED = -1e6


def attention_weights(
  query: jax.Array,
  key: jax.Array,
  bias: jax.Array | None = None,
  real: jax.Array | np.ndarray | None = None,
  *,
  scale: float | None = None,
) -> jax.Array:
  """The weights of `attend`, `[batch, groups, heads, queries, keys]`, in at least float32."""
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum('bgqnd,bgknd->bgnqk', query * scale, key, preferred_element_type=dtype)
  return nn.softmax(scores + score_offset(bias, real, dtype))


def score_offset(
  bias: jax.Array | None, real: jax.Array | np.ndarray | None, dtype: jnp.dtype
) -> jax.Array | int:
  """What is added to the scores: the bias, and a large negative number for padded keys."""
  offset = 0 if bias is None else bias.astype(dtype)
  return offset if real is None else offset + jnp.where(real, 0, _MASKED)[:, None, None]


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None = None,
  real: jax.Array | np.ndarray | None = None,
  *,
  scale: float | None = None,
) -> jax.Array:
  """softmax(query key^T scale + bias) value, in each group and head.

  Args:
    query: `[batch, groups, tokens, heads, head_dim]`.
    key: the same shape.
    value: the same shape.
    bias: `[heads, queries, keys]`.
    real: bool `[groups, tokens]`; the others are masked as keys. Of a group that has none at all
      the result is finite and means nothing.
    scale: of the scores; head_dim^-0.5 by default.

  Returns:
    The same shape in `value`'s dtype.
  """
  weights = attention_weights(query, key, bias, real, scale=scale)
  return jnp.einsum('bgnqk,bgknd->bgqnd', weights.astype(value.dtype), value)


def grouped_attention(query, key, value, bias, *, grouping, num_heads, scale):
  """See `kernels.grouped_attention`, of padded maps."""

  def groups(x: jax.Array) -> jax.Array:
    heads = rearrange(grouping.split(x), 'b g t (n d) -> b g t n d', n=num_heads)
    return parallel.constrain(heads, 'batch', 'tokens', None, 'heads', None)

  out = attend(*map(groups, (query, key, value)), bias, grouping.real_tokens(), scale=scale)
  return grouping.merge(rearrange(out, 'b g t n d -> b g t (n d)'))
