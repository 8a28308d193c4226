"""The public function of dot-product attention: choice of the form."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from crossattn_jax.kernels import dispatch
from crossattn_jax.kernels.dot_product import cpu, reference, tpu

# From here on, writing the scores to HBM costs a TPU more than computing them again.
_LEAST_TOKENS = 256
# With as many queries as keys and many heads already from here on: the scores of fewer heads stay
# in vector memory, and few keys of many queries are padded.
_LEAST_SQUARE, _LEAST_HEADS = 192, 6
# Keys whose scores with a block of queries fit into a TPU's vector memory.
_MOST_KEYS = 4096


def dot_product_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  scale: float | None = None,
  mask: jax.Array | None = None,
  dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
  """softmax(query key^T scale) value, per head (Vaswani et al. 2017, equation 1).

  CPUs take matrix products in the layouts that XLA:CPU is fast at, with a gradient of their own.
  TPUs take a kernel where `kernel_pays`, which keeps the scores out of HBM. Everything else is
  `jax.nn.dot_product_attention`, but for masks, dropout of the weights and float64, which `jax.nn`
  rounds to float32 in the softmax: they take the definition.

  Args:
    query: `[batch, queries, heads, head_dim]`.
    key: `[batch, tokens, heads, head_dim]`.
    value: the same shape as `key`.
    scale: of the scores; head_dim^-1/2 if None.
    mask: bool `[batch, tokens]`, False for tokens that take no part; what they hold must be finite.
    dropout: applied to the attention weights `[batch, heads, queries, tokens]`.

  Returns:
    `[batch, queries, heads, head_dim]` in `value`'s dtype; the softmax is computed in at least
    float32.

  Examples:
    >>> query, key = jnp.ones((2, 5, 4, 16)), jnp.ones((2, 49, 4, 16))
    >>> jax.eval_shape(dot_product_attention, query, key, key).shape
    (2, 5, 4, 16)
  """
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  if mask is not None or dropout is not None or query.dtype == jnp.float64:
    return reference.dot_product_attention(query, key, value, scale, mask, dropout)
  pays = kernel_pays(query, key)
  return dispatch.by_platform(
    query,
    key,
    value,
    cpu=cpu.dot_product_attention,
    tpu=tpu.dot_product_attention if pays else None,
    xla=jax.nn.dot_product_attention,
    scale=scale,
  )


def kernel_pays(query: jax.Array, key: jax.Array) -> bool:
  """Whether a TPU is faster with the kernel, by static estimates of the compiler."""
  (queries, heads), tokens = query.shape[1:3], key.shape[1]
  least = _LEAST_SQUARE if queries == tokens and heads >= _LEAST_HEADS else _LEAST_TOKENS
  return query.dtype == jnp.bfloat16 and min(queries, tokens) >= least and tokens <= _MOST_KEYS
