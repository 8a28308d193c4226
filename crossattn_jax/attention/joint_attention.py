"""Attention from each of several sets of tokens to all of them under one softmax.

Source: the cross-attention module of MMCA, "Multi-Modality Cross Attention Network for Image and
Sentence Matching" (Wei et al., CVPR 2020). It stacks image regions and words, so that a region
takes from regions and from words at once, in shares that sum to one. The sets are kept apart here:
what depends on one of them only, its projections and the scores within it, is computed once for all
its partners.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.layers import activations, linear, module

Dropout = Callable[[jax.Array], jax.Array]

# Score of a token that takes no part, as in BERT: its share is exactly zero, and where no token
# takes part the shares are equal instead of undefined.
_EXCLUDED = -10_000.0


def joint_attention(
  query: jax.Array,
  keys: Sequence[jax.Array],
  values: Sequence[jax.Array],
  masks: Sequence[jax.Array | None],
  *,
  dropout: Dropout | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends from one set of tokens to several, scores scaled by head_dim^-1/2, under one softmax.

  Args:
    query: `[..., queries, heads, head_dim]`. The leading axes of all arguments broadcast: of
      `[images, 1, ...]` and `[1, captions, ...]` every image is paired with every caption.
    keys: per set `[..., tokens, heads, head_dim]`.
    values: per set, the same shape as its keys.
    masks: per set bool `[..., tokens]`, False for tokens that take no part; None for none.
    dropout: applied to the attention weights.

  Returns:
    `[..., queries, heads, head_dim]` in `query`'s dtype, and the attention weights before dropout
    `[..., heads, queries, tokens of all sets]` in at least float32.

  Examples:
    >>> images, words = jnp.ones((2, 36, 4, 16)), jnp.ones((2, 12, 4, 16))
    >>> mask = jnp.ones((2, 12), bool)
    >>> sets = (images, words)
    >>> y, weights = jax.eval_shape(joint_attention, images, sets, sets, (None, mask))
    >>> y.shape, weights.shape
    ((2, 36, 4, 16), (2, 4, 36, 48))
  """
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = []
  for key, mask in zip(keys, masks, strict=True):
    part = jnp.einsum('...nhd,...mhd->...hnm', query, key, preferred_element_type=dtype)
    part *= query.shape[-1] ** -0.5
    scores.append(part if mask is None else jnp.where(mask[..., None, None, :], part, _EXCLUDED))
  leading = jnp.broadcast_shapes(*(part.shape[:-1] for part in scores))
  scores = [jnp.broadcast_to(part, (*leading, part.shape[-1])) for part in scores]
  weights = nn.softmax(jnp.concatenate(scores, axis=-1))
  used = (weights if dropout is None else dropout(weights)).astype(query.dtype)
  ends = list(itertools.accumulate(key.shape[-3] for key in keys))
  parts = jnp.split(used, ends[:-1], axis=-1)
  out = sum(
    jnp.einsum('...hnm,...mhd->...nhd', part, value)
    for part, value in zip(parts, values, strict=True)
  )
  return out, weights


class Projected(NamedTuple):
  """A set of tokens as a `PostNormUnit` projects them.

  Attributes:
    tokens: `[..., tokens, width]`.
    query: `[..., tokens, heads, head_dim]`.
    key: the same shape.
    value: the same shape.
    mask: bool `[..., tokens]`, False for tokens that take no part; None for none.
  """

  tokens: jax.Array
  query: jax.Array
  key: jax.Array
  value: jax.Array
  mask: jax.Array | None = None


class PostNormUnit(module.Module):
  """The transformer's unit (Vaswani et al. 2017): attention and an MLP, each added, then normed.

  One set of tokens attends to itself; several attend to each other and themselves, with the same
  parameters. Dropout is on the attention weights and on what either half adds.

  Attributes:
    width: of the tokens.
    num_heads: of the attention.
    mlp_dim: width between the MLP's linear maps.
    drop_rate: of all dropouts.
    init_std: of the initial kernels, biases being zero; None draws both as PyTorch does by default.
  """

  width: int
  num_heads: int
  mlp_dim: int
  drop_rate: float = 0.0
  init_std: float | None = None

  def setup(self):
    """Creates the parts."""
    if self.width % self.num_heads:
      raise ValueError(f'num_heads={self.num_heads} does not divide the width {self.width}')
    heads = (self.num_heads, self.width // self.num_heads)
    init = linear.TORCH
    if self.init_std is not None:
      init = {'kernel_init': nn.initializers.normal(self.init_std)}
    dense = functools.partial(linear.Dense, **init, **self.types)
    self.query = dense(heads)
    self.key = dense(heads)
    self.value = dense(heads)
    self.out = dense(self.width, axis=(-2, -1))
    self.norm1 = self.layer_norm(epsilon=1e-12)
    self.fc1 = dense(self.mlp_dim)
    self.fc2 = dense(self.width)
    self.norm2 = self.layer_norm(epsilon=1e-12)
    self.drop = nn.Dropout(self.drop_rate)

  def project(self, tokens: jax.Array, mask: jax.Array | None = None) -> Projected:
    """Computes what the attention takes of `[..., tokens, width]`."""
    projections = (projection(tokens) for projection in (self.query, self.key, self.value))
    return Projected(tokens, *projections, mask)

  def attend(
    self, sets: Sequence[Projected], train: bool = False
  ) -> tuple[list[jax.Array], list[jax.Array]]:
    """Lets sets of tokens attend to each other and themselves.

    Args:
      sets: with leading axes that broadcast.
      train: whether it drops.

    Returns:
      Per set its new tokens `[..., tokens, width]`, and the attention weights of its queries
      `[..., heads, queries, tokens of all sets]`.
    """
    _, _, keys, values, masks = zip(*sets, strict=True)
    drops = train and self.drop_rate > 0
    dropout = functools.partial(self.drop, deterministic=False) if drops else None
    results, weights = [], []
    for projected in sets:
      attended, shares = joint_attention(projected.query, keys, values, masks, dropout=dropout)
      results.append(self._update(projected.tokens, attended, train))
      weights.append(shares)
    return results, weights

  def _update(self, tokens: jax.Array, attended: jax.Array, train: bool) -> jax.Array:
    x = self.norm1(self.drop(self.out(attended), deterministic=not train) + tokens)
    hidden = activations.gelu(self.fc1(x))
    x = self.norm2(self.drop(self.fc2(hidden), deterministic=not train) + x)
    pairs = (None,) * (x.ndim - 3)
    return parallel.constrain(x, 'batch', *pairs, 'tokens', 'channels')

  def __call__(
    self, tokens: jax.Array, mask: jax.Array | None = None, train: bool = False
  ) -> jax.Array:
    """Lets `[batch, tokens, width]` attend to those of them that `mask` has as True."""
    (tokens,), _ = self.attend([self.project(tokens, mask)], train)
    return tokens
