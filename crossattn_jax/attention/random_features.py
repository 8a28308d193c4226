"""Linear attention through positive random features.

Source: Performer, Choromanski et al. 2021 (arXiv 2009.14794), lemma 1, as the tokens-to-token ViT
uses it (Yuan et al. 2021, arXiv 2101.11986).
"""

import math

import jax
import jax.numpy as jnp


def positive_random_features(x: jax.Array, directions: jax.Array) -> jax.Array:
  """exp(x w^T - |x|^2 / 2) / sqrt(m), whose inner products estimate exp(x . y) (lemma 1).

  Args:
    x: `[..., channels]`.
    directions: w, `[m, channels]`.

  Returns:
    `[..., m]`, positive, in `x`'s dtype.
  """
  half_norm = 0.5 * jnp.square(x).sum(axis=-1, keepdims=True)
  return jnp.exp(x @ directions.T - half_norm) / math.sqrt(directions.shape[0])


def random_feature_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  directions: jax.Array,
  *,
  epsilon: float = 1e-8,
) -> jax.Array:
  """Estimates softmax(query key^T) value (unscaled) in time and memory linear in the tokens.

  Args:
    query: `[batch, queries, channels]`.
    key: `[batch, tokens, channels]`.
    value: `[batch, tokens, value_channels]`.
    directions: random directions `[m, channels]`.
    epsilon: added to the normaliser.

  Returns:
    `[batch, queries, value_channels]` in `value`'s dtype; computed in at least float32.

  Examples:
    >>> x, directions = jnp.ones((2, 49, 16)), jnp.ones((32, 16))
    >>> jax.eval_shape(random_feature_attention, x, x, x, directions).shape
    (2, 49, 16)
  """
  dtype = jnp.promote_types(value.dtype, jnp.float32)
  directions = directions.astype(dtype)
  query_features = positive_random_features(query.astype(dtype), directions)
  key_features = positive_random_features(key.astype(dtype), directions)
  pooled = jnp.einsum('bnm,bnc->bmc', key_features, value.astype(dtype))
  numerator = jnp.einsum('bqm,bmc->bqc', query_features, pooled)
  denominator = jnp.einsum('bqm,bm->bq', query_features, key_features.sum(axis=1)) + epsilon
  return (numerator / denominator[..., None]).astype(value.dtype)
