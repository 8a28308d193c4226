"""Information injection: what one image's features take from another's, or what they lack of it.

Source: ATFuse, "Rethinking Cross-Attention for Infrared and Visible Image Fusion" (arXiv
2401.11675). The paper writes attention between all pairs of tokens; its code, followed here, sums
the values to one small matrix per head first, which is linear in the tokens, so that whole images
attend to each other.
"""

import math
from typing import Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.layers import initializers, linear, mlp, module

Injection = Literal['common', 'discrepancy']
Attention = Literal['factorized', 'softmax']
INJECTIONS = ('common', 'discrepancy')
ATTENTIONS = ('factorized', 'softmax')


def token_weights(key: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """The share that each token has in the sums of `factorized_attention`.

  Args:
    key: `[batch, tokens, heads, head_dim]`.
    mask: bool `[batch, tokens]`, False for tokens that take no part; None for none.

  Returns:
    The softmax over the tokens, of `key`'s shape, in at least float32.
  """
  key = key.astype(jnp.promote_types(key.dtype, jnp.float32))
  return nn.softmax(key, axis=1, where=None if mask is None else mask[:, :, None, None])


def factorized_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """Attends by `query (softmax(key)^T value)`, the softmax over the tokens, without scaling.

  Args:
    query: `[batch, tokens, heads, head_dim]`.
    key: `[batch, context_tokens, heads, head_dim]`.
    value: the same shape as `key`.
    mask: bool `[batch, context_tokens]`, False for tokens that take no part; None for none.

  Returns:
    `[batch, tokens, heads, head_dim]` in `value`'s dtype. Sums over tokens are in at least float32.
  """
  dtype = jnp.promote_types(value.dtype, jnp.float32)
  weights = token_weights(key, mask).astype(value.dtype)
  summary = jnp.einsum('bnhc,bnhd->bhcd', weights, value, preferred_element_type=dtype)
  return jnp.einsum('bnhc,bhcd->bnhd', query, summary.astype(query.dtype)).astype(value.dtype)


def softmax_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """The paper's equation: attention between all pairs of tokens, for small maps.

  Args:
    query: `[batch, tokens, heads, head_dim]`.
    key: `[batch, context_tokens, heads, head_dim]`.
    value: the same shape as `key`.
    mask: bool `[batch, context_tokens]`, as in `factorized_attention`.

  Returns:
    `[batch, tokens, heads, head_dim]` in `value`'s dtype. Scores are scaled by `head_dim^-0.5`.
  """
  # `jax.nn.dot_product_attention` has no float64.
  dtype = jnp.promote_types(value.dtype, jnp.float32)
  scores = jnp.einsum('bnhc,bmhc->bhnm', query, key, preferred_element_type=dtype)
  scores *= query.shape[-1] ** -0.5
  weights = nn.softmax(scores, where=None if mask is None else mask[:, None, None, :])
  return jnp.einsum('bhnm,bmhc->bnhc', weights.astype(value.dtype), value)


def inject(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  injection: Injection = 'common',
  attention: Attention = 'factorized',
  mask: jax.Array | None = None,
) -> jax.Array:
  """What the values add to the queries.

  Args:
    query: `[batch, tokens, heads, head_dim]`.
    key: `[batch, context_tokens, heads, head_dim]`.
    value: the same shape as `key`.
    injection: 'common' gives what attention finds in the values; 'discrepancy' what is left of the
      values without it, for which both maps must have the same tokens.
    attention: 'factorized' (the code) or 'softmax' (the paper's equation).
    mask: bool `[batch, context_tokens]`, False for tokens that take no part; None for none.

  Returns:
    `[batch, tokens, heads, head_dim]`.

  Raises:
    ValueError: one of the choices is unknown, or tokens do not correspond.
  """
  if attention not in ATTENTIONS:
    raise ValueError(f'attention={attention!r} is not one of {", ".join(ATTENTIONS)}')
  attend = factorized_attention if attention == 'factorized' else softmax_attention
  if injection == 'common':
    return attend(query, key, value, mask)
  if injection != 'discrepancy':
    raise ValueError(f'injection={injection!r} is not one of {", ".join(INJECTIONS)}')
  if query.shape[1] != value.shape[1]:
    raise ValueError(
      f'a discrepancy needs as many tokens of the query as of the value, not {query.shape[1]} and '
      f'{value.shape[1]}'
    )
  return value - attend(query, key, value, mask)


class InjectionAttention(module.Module):
  """`inject` with its projections.

  Attributes:
    num_heads: of the attention.
    injection: see `inject`.
    attention: see `inject`.
    qkv_bias: whether query, key and value have a bias.
  """

  num_heads: int
  injection: Injection = 'common'
  attention: Attention = 'factorized'
  qkv_bias: bool = True

  @nn.compact
  def __call__(
    self, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Attends from one set of tokens to another.

    Args:
      query: `[batch, tokens, channels]`.
      key: `[batch, context_tokens, channels]`.
      value: the same shape as `key`.
      mask: bool `[batch, context_tokens]`, False for tokens that take no part.

    Returns:
      `[batch, tokens, channels]`, and the mean share of each token of the context in factorised
      sums, `[batch, context_tokens]` in at least float32.

    Raises:
      ValueError: the heads do not divide the channels.
    """
    channels = query.shape[-1]
    if channels % self.num_heads:
      raise ValueError(f'num_heads={self.num_heads} does not divide {channels} channels')
    common = {'kernel_init': initializers.linear, **self.types}

    def project(x: jax.Array, name: str) -> jax.Array:
      heads = (self.num_heads, channels // self.num_heads)
      x = linear.Dense(heads, use_bias=self.qkv_bias, name=name, **common)(x)
      return parallel.constrain(x, 'batch', 'tokens', 'heads', None)

    query, key, value = project(query, 'query'), project(key, 'key'), project(value, 'value')
    injected = inject(
      query, key, value, injection=self.injection, attention=self.attention, mask=mask
    )
    out = linear.Dense(channels, axis=(-2, -1), name='out', **common)(injected)
    return out, token_weights(key, mask).mean(axis=(2, 3))


class InformationInjection(module.Module):
  """Injects one map's information into another: attention and an MLP, each added to its input.

  With 'discrepancy' the DIIM of the paper, with 'common' one half of its ACIIM. There is no norm
  before the attention.

  Attributes:
    num_heads: of the attention.
    mlp_ratio: hidden width of the MLP per channel.
    injection: see `inject`.
    attention: see `inject`.

  Examples:
    >>> injection, visible = InformationInjection(), jnp.ones((1, 8, 8, 64))
    >>> maps = visible, jnp.ones((1, 8, 8, 64)), jnp.ones((1, 8, 8, 64))  # Query, key, value.
    >>> jax.eval_shape(injection.init_with_output, jax.random.key(0), *maps)[0][0].shape
    (1, 8, 8, 64)
  """

  num_heads: int = 4
  mlp_ratio: float = 3
  injection: Injection = 'common'
  attention: Attention = 'factorized'

  @nn.compact
  def __call__(
    self, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Injects `value` into `query`.

    Args:
      query: `[batch, height, width, channels]`.
      key: a map of as many channels; where the injection is 'discrepancy' of the same size.
      value: the same shape as `key`; usually the same map.
      mask: bool, of `key`'s height and width `[batch, height, width]`: False for positions that
        take no part.

    Returns:
      A map of `query`'s shape, and the mean share of each position of `key` in what is injected,
      `[batch, height, width]`; see `token_weights`.
    """
    channels = query.shape[-1]

    def tokens(x: jax.Array) -> jax.Array:
      return x.reshape(x.shape[0], math.prod(x.shape[1:3]), *x.shape[3:])

    attention = InjectionAttention(
      self.num_heads, self.injection, self.attention, name='attention', **self.types
    )
    injected, weights = attention(
      tokens(query), tokens(key), tokens(value), None if mask is None else tokens(mask)
    )
    x = query + injected.reshape(query.shape)
    norm = self.layer_norm('norm')
    hidden = int(self.mlp_ratio * channels)
    x += mlp.Mlp(hidden, name='mlp', **self.types)(norm(x))
    x = parallel.constrain(x, 'batch', 'height', 'width', 'channels')
    return x, weights.reshape(key.shape[:3])
