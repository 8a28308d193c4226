"""Efficient additive attention: each query gets one weight, and all of them one global query.

Source: SwiftFormer, Shaker et al. 2023 (arXiv 2303.15446), section 3.2. Linear in the tokens: there
is no matrix of tokens by tokens, and the tokens meet in one vector per image.
"""

import math
from typing import Literal, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.layers import initializers, linear, module, similarity

Normalization = Literal['l2', 'ones', 'softmax', 'raw']
NORMALIZATIONS = ('l2', 'ones', 'softmax', 'raw')


class AdditiveAttention(NamedTuple):
  """What `efficient_additive_attention` returns.

  Attributes:
    context: global query times key, `[batch, tokens, channels]`.
    query: normalised, the same shape; the residual of the mechanism.
    weights: of the tokens in the global query, `[batch, tokens]`, in at least float32.
  """

  context: jax.Array
  query: jax.Array
  weights: jax.Array


def efficient_additive_attention(
  query: jax.Array,
  key: jax.Array,
  query_weights: jax.Array,
  *,
  scale: float = 1.0,
  normalization: Normalization = 'l2',
) -> AdditiveAttention:
  """Sums queries to one global query, which multiplies every key (equations 4 to 6).

  Args:
    query: `[batch, tokens, channels]`, not yet normalised.
    key: the same shape, likewise.
    query_weights: the learnt vector w_g `[channels]`, whose product with a query is its score.
    scale: of the scores.
    normalization: how scores become weights of the tokens. 'l2' divides them by their norm over the
      tokens (the authors' code and weights since July 2023, and timm); 'ones' gives every token 1
      (their first release, a softmax over an axis of length one, and the transformers port);
      'softmax' over the tokens; 'raw' leaves the scores as they are (the equations as printed).

  Returns:
    Context, normalised query, weights. Norms, scores and sums over tokens are in at least float32.

  Examples:
    >>> tokens, weights = jnp.ones((2, 49, 16)), jnp.ones(16)
    >>> jax.eval_shape(efficient_additive_attention, tokens, tokens, weights).context.shape
    (2, 49, 16)
  """
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  query, key = similarity.l2_normalize(query), similarity.l2_normalize(key)
  if normalization == 'ones':
    weights = jnp.ones(query.shape[:-1], dtype)
  else:
    scores = scale * jnp.einsum('bnc,c->bn', query, query_weights.astype(dtype))
    weights = _weights(scores, normalization)
  global_query = jnp.einsum('bn,bnc->bc', weights, query)
  return AdditiveAttention(global_query[:, None] * key, query, weights)


def _weights(scores: jax.Array, normalization: Normalization) -> jax.Array:
  match normalization:
    case 'l2':
      return similarity.l2_normalize(scores)
    case 'softmax':
      return nn.softmax(scores)
    case 'raw':
      return scores
  raise ValueError(f'normalization={normalization!r} is not one of {", ".join(NORMALIZATIONS)}')


class EfficientAdditiveAttention(module.Module):
  """Efficient additive attention over all positions of a map, or over tokens.

  Attributes:
    num_heads: how many times `head_dim` queries and keys are wide. Nothing is split per head.
    head_dim: channels of the result; those of the input by default.
    normalization: see `efficient_additive_attention`.
    dtype: of the linear maps and of the result.

  Examples:
    >>> attention, x = EfficientAdditiveAttention(head_dim=32), jnp.ones((2, 7, 7, 64))
    >>> jax.eval_shape(attention.init_with_output, jax.random.key(0), x)[0].shape
    (2, 7, 7, 32)
  """

  num_heads: int = 1
  head_dim: int | None = None
  normalization: Normalization = 'l2'

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool = False, with_weights: bool = False
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Maps `[batch, ..., channels]` to `[batch, ..., head_dim]`.

    Args:
      x: a map of any size, or tokens.
      train: changes nothing here.
      with_weights: whether to return also the weight of each position in the global query,
        `[batch, ...]`, which may be negative.
    """
    del train
    head_dim = self.head_dim or x.shape[-1]
    width = self.num_heads * head_dim

    def dense(features: int, name: str) -> linear.Dense:
      return linear.Dense(features, kernel_init=initializers.linear, name=name, **self.types)

    tokens = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
    query, key = dense(width, 'query')(tokens), dense(width, 'key')(tokens)
    query_weights = self.param(
      'query_weights', nn.initializers.normal(1.0), (width,), self.param_dtype
    )
    attended = efficient_additive_attention(
      query, key, query_weights, scale=head_dim**-0.5, normalization=self.normalization
    )
    context = dense(width, 'projection')(attended.context.astype(query.dtype))
    out = dense(head_dim, 'out')(context + attended.query.astype(query.dtype))
    out = out.reshape(*x.shape[:-1], head_dim)
    return (out, attended.weights.reshape(x.shape[:-1])) if with_weights else out
