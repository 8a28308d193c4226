"""Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2)."""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax
from jax import export
import jax.numpy as jnp

from crossattn_jax import kernels, parallel
from crossattn_jax.layers import linear

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cpu_attention(query: jax.Array, key: jax.Array, value: jax.Array, scale: float) -> jax.Array:
  """The equation for CPUs: every product in the fastest of its transposed forms.

  Scores are `[keys, queries]`: the softmax reduces over rows, and no product transposes them. The
  backward pass, written out, divides by the total once.
  """
  return _cpu_forward(query, key, value, scale)[0]


def _product(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
  """Contracts one axis of each, per example and head, in at least float32."""
  dtype = jnp.promote_types(a.dtype, jnp.float32)
  numbers = (((axis_a,), (axis_b,)), ((0, 1), (0, 1)))
  return jax.lax.dot_general(a, b, numbers, preferred_element_type=dtype)


def _columns(x: jax.Array) -> jax.Array:
  return jnp.transpose(x, (0, 2, 3, 1))  # [batch, heads, head_dim, tokens]


def _rows(x: jax.Array) -> jax.Array:
  return jnp.transpose(x, (0, 2, 1, 3))  # [batch, heads, tokens, head_dim]


def _cpu_forward(query, key, value, scale):
  scores = _product(_columns(key), _columns(query * scale), 2, 2)
  weights = jnp.exp(scores - scores.max(axis=2, keepdims=True))
  total = weights.sum(axis=2, keepdims=True)
  out = _product(_rows(value), weights.astype(value.dtype), 2, 2) / total
  result = jnp.transpose(out, (0, 3, 1, 2)).astype(value.dtype)
  return result, (query, key, value, weights, total, out)


def _cpu_backward(scale, residuals, d_out):
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


_cpu_attention.defvjp(_cpu_forward, _cpu_backward)


# From here on, writing the scores to HBM costs a TPU more than computing them again.
_KERNEL_TOKENS = 256
# Keys whose scores with a block of queries fit into a TPU's vector memory.
_KERNEL_MOST_TOKENS = 4096
# Queries of a block: as many as a TPU's vector registers have lanes.
_KERNEL_QUERIES = 128


def _tpu_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, head_dim: int, scale: float
) -> jax.Array:
  """The equation as the kernel of routed attention: every block of queries sees the one region.

  Queries, keys and values are `[batch, tokens, channels]`, head by head.
  """
  blocks = -(-query.shape[1] // _KERNEL_QUERIES)
  padding = blocks * _KERNEL_QUERIES - query.shape[1]
  padded = jnp.pad(query, ((0, 0), (0, padding), (0, 0)))
  query_regions = padded.reshape(query.shape[0], blocks, _KERNEL_QUERIES, -1)
  key_region, value_region = (x.reshape(x.shape[0], 1, x.shape[1], -1) for x in (key, value))
  out = kernels.routed_attention(
    query_regions,
    key_region,
    value_region,
    jnp.zeros((query.shape[0], blocks, 1), jnp.int32),
    num_heads=query.shape[2] // head_dim,
    scale=scale,
    implementation='tpu',
  )
  out = out.reshape(query.shape[0], blocks * _KERNEL_QUERIES, value.shape[-1])
  return out[:, : query.shape[1]]


def _sharded_tpu_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, scale: float
) -> jax.Array:
  """`_tpu_attention` of heads apart, each device working on its examples, heads and queries."""
  # Heads are side by side at the parts' border, where XLA would pad the channels of each to 128.
  heads = ('heads', query.shape[2])
  split = ('batch', 'tokens', heads)
  out = parallel.map_shards(
    functools.partial(_tpu_attention, head_dim=query.shape[3], scale=scale),
    *(x.reshape(*x.shape[:2], -1) for x in (query, key, value)),
    names=(split, ('batch', None, heads), ('batch', None, heads)),
    out_names=split,
  )
  return out.reshape(*out.shape[:2], *value.shape[2:])


def _kernel_pays(query: jax.Array, key: jax.Array) -> bool:
  """Whether a TPU computes the attention in its kernel (measured in docs/scaling.md)."""
  if query.dtype != jnp.bfloat16 or export.is_symbolic_dim(query.shape[0]):
    return False
  return min(query.shape[1], key.shape[1]) >= _KERNEL_TOKENS and key.shape[1] <= _KERNEL_MOST_TOKENS


def dot_product_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  scale: float | None = None,
  dropout: Dropout | None = None,
) -> jax.Array:
  """softmax(query key^T scale) value, per head. The one place that picks its form.

  CPUs take batched matrix products in the layouts that XLA:CPU is fast at, with a gradient of
  their own. TPUs take a kernel in bfloat16 from 256 tokens on, which keeps the scores out of HBM.
  Everything else is `jax.nn.dot_product_attention`, but for dropout of the weights and float64,
  which `jax.nn` rounds to float32 in the softmax: they have a plain form.

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
  forms = {
    'cpu': lambda query, key, value: _cpu_attention(query, key, value, scale),
    'default': functools.partial(jax.nn.dot_product_attention, scale=scale),
  }
  if _kernel_pays(query, key):
    forms['tpu'] = functools.partial(_sharded_tpu_attention, scale=scale)
  return jax.lax.platform_dependent(query, key, value, **forms)


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
    types = {
      'kernel_init': self.kernel_init,
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    head_dim = channels // self.num_heads
    project = linear.Projections(3, self.num_heads, head_dim, self.qkv_bias, name='qkv', **types)
    query, key, value = (
      parallel.constrain(part, 'batch', 'tokens', ('heads', self.num_heads)).reshape(
        *part.shape[:2], self.num_heads, head_dim
      )
      for part in project(x)
    )
    drops_weights = train and self.attention_drop_rate > 0
    dropout = nn.Dropout(self.attention_drop_rate, deterministic=False) if drops_weights else None
    out = dot_product_attention(query, key, value, dropout=dropout)
    out = linear.Dense(channels, axis=(-2, -1), name='out', **types)(out)
    return nn.Dropout(self.drop_rate, deterministic=not train)(out)
