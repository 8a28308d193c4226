"""Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2)."""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel

Dropout = Callable[[jax.Array], jax.Array]


def _heads_first_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, scale: float, dropout: Dropout | None = None
) -> jax.Array:
  """The equation as two batched matrix products, normalised after the second."""
  query, key, value = (jnp.swapaxes(part, 1, 2) for part in (query, key, value))
  score_dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.matmul(query, jnp.swapaxes(key, -1, -2), preferred_element_type=score_dtype)
  scores = scores * scale
  weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
  total = weights.sum(axis=-1, keepdims=True)
  used = (weights if dropout is None else dropout(weights)).astype(value.dtype)
  out = jnp.matmul(used, value, preferred_element_type=score_dtype) / total
  return jnp.swapaxes(out.astype(value.dtype), 1, 2)


def dot_product_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  scale: float | None = None,
  dropout: Dropout | None = None,
) -> jax.Array:
  """softmax(query key^T scale) value, per head. The one place that picks its form.

  CPUs take batched matrix products with the heads first and divide the result, not the weights, by
  the softmax's total: half the time of the einsums of `jax.nn.dot_product_attention`, which the
  other platforms take. Dropout of the weights and float64, which `jax.nn` rounds to float32 in the
  softmax, have only the first form.

  Args:
    query: `[batch, queries, heads, head_dim]`.
    key: `[batch, tokens, heads, head_dim]`.
    value: the same shape as `key`.
    scale: of the scores; head_dim^-1/2 if None.
    dropout: applied to the attention weights `[batch, heads, queries, tokens]`.

  Returns:
    `[batch, queries, heads, head_dim]` in `value`'s dtype; the softmax is computed in at least
    float32.
  """
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  if dropout is not None or query.dtype == jnp.float64:
    return _heads_first_attention(query, key, value, scale, dropout)
  return jax.lax.platform_dependent(
    query,
    key,
    value,
    cpu=functools.partial(_heads_first_attention, scale=scale),
    default=functools.partial(jax.nn.dot_product_attention, scale=scale),
  )


class SelfAttention(nn.Module):
  """Multi-head self-attention with one fused projection to query, key and value.

  Attributes:
    num_heads: must divide the width of the tokens.
    qkv_bias: whether the fused projection has a bias.
    attention_drop_rate: dropout of the attention weights.
    drop_rate: dropout of the result.
    kernel_init: of both projections.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  num_heads: int
  qkv_bias: bool = True
  attention_drop_rate: float = 0.0
  drop_rate: float = 0.0
  kernel_init: nn.initializers.Initializer = nn.initializers.normal(stddev=0.02)
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, tokens, channels]` to the same shape."""
    channels = x.shape[-1]
    if channels % self.num_heads:
      raise ValueError(f'num_heads={self.num_heads} does not divide the width {channels}')
    common = {
      'kernel_init': self.kernel_init,
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    qkv = nn.DenseGeneral(
      (3, self.num_heads, channels // self.num_heads),
      use_bias=self.qkv_bias,
      name='qkv',
      **common,
    )(x)
    query, key, value = (
      parallel.constrain(part, 'batch', 'tokens', 'heads', None) for part in jnp.moveaxis(qkv, 2, 0)
    )
    drops_weights = train and self.attention_drop_rate > 0
    dropout = nn.Dropout(self.attention_drop_rate, deterministic=False) if drops_weights else None
    out = dot_product_attention(query, key, value, dropout=dropout)
    out = nn.DenseGeneral(channels, axis=(-2, -1), name='out', **common)(out)
    return nn.Dropout(self.drop_rate, deterministic=not train)(out)
