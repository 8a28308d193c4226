"""Attention with positions: added to queries and keys in every layer, and never to values.

Source: DETR, Carion et al. 2020 (arXiv 2005.12872), appendix A.3.
"""

from einops import rearrange, repeat
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import kernels, parallel
from crossattn_jax.layers import linear, module


def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
  """softmax(query key^T head_dim^-1/2).

  Args:
    query: `[batch, queries, heads, head_dim]`.
    key: `[batch, tokens, heads, head_dim]`.

  Returns:
    `[batch, heads, queries, tokens]` in at least float32.
  """
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum('bnhd,bmhd->bhnm', query, key, preferred_element_type=dtype)
  return nn.softmax(scores * query.shape[-1] ** -0.5)


class PositionedAttention(module.Module):
  """Queries of tokens and keys of others, both with positions; values are of the others without.

  Attributes:
    num_heads: must divide the channels.
    drop_rate: of the attention weights.
    out_init: of the kernel of the last linear map; see `linear.Dense`.

  Examples:
    >>> attention, x, others = PositionedAttention(), jnp.ones((1, 5, 64)), jnp.ones((1, 49, 64))
    >>> (y, weights), _ = jax.eval_shape(
    ...   attention.init_with_output, jax.random.key(0), x, others, x, others
    ... )
    >>> y.shape, weights.shape
    ((1, 5, 64), (1, 5, 49))
  """

  num_heads: int = 8
  drop_rate: float = 0.0
  out_init: nn.initializers.Initializer | None = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    others: jax.Array,
    x_position: jax.Array,
    position_of_others: jax.Array,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """Attends from tokens to others, which may be themselves.

    Args:
      x: `[batch, queries, channels]`.
      others: `[batch, tokens, channels]`; or `[batch, sets, tokens, channels]`, sets that are
        attended to one by one, and what they give is averaged.
      x_position: added to x, which it broadcasts against.
      position_of_others: added to the others, likewise.
      train: whether to drop.

    Returns:
      `[batch, queries, channels]`; and the mean weights of all heads and sets, `[batch, queries,
      tokens]`.

    Raises:
      ValueError: the heads do not divide the channels.
    """
    channels, heads = x.shape[-1], self.num_heads
    count = 1 if others.ndim == 3 else others.shape[1]
    project = linear.Projections(
      3, heads, channels, kernel_init=nn.initializers.xavier_uniform(), name='qkv', **self.types
    )
    (query,) = project(x + x_position.astype(x.dtype), slice(0, 1))
    (key,) = project(others + position_of_others.astype(others.dtype), slice(1, 2))
    (value,) = project(others, slice(2, 3))
    query = parallel.constrain(query, 'batch', 'tokens', ('heads', heads))
    query = repeat(query, 'b n (h d) -> (b k) n h d', k=count, h=heads)
    key, value = (linear.split_heads(x.reshape(-1, *x.shape[-2:]), heads) for x in (key, value))
    dropout = None
    if train and self.drop_rate > 0:
      dropout = nn.Dropout(self.drop_rate, deterministic=False)
    attended = kernels.dot_product_attention(query, key, value, dropout=dropout)
    attended = rearrange(attended, '(b k) n h d -> b k n h d', k=count).mean(axis=1)
    out = linear.Dense(channels, axis=(-2, -1), kernel_init=self.out_init, name='out', **self.types)
    weights = attention_weights(query, key)
    weights = rearrange(weights, '(b k) h n m -> b (k h) n m', k=count).mean(axis=1)
    return out(attended), weights
