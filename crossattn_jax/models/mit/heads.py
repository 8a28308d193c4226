"""From tokens to scores of classes, and what aligns class tokens (MIT, arXiv 2310.12817)."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from crossattn_jax.layers import linear

Pool = Literal['mean', 'max']
POOLS = ('mean', 'max')


def activation(x: jax.Array, num_classes: int, name: str, **types: Any) -> jax.Array:
  """A linear map of each token to logits of the classes.

  Args:
    x: `[batch, tokens, channels]`.
    num_classes: of the logits.
    name: of the submodule; this is called from a compact method.
    **types: both dtypes.

  Returns:
    `[batch, tokens, num_classes]`, in at least float32.
  """
  logits = linear.Dense(num_classes, name=name, **linear.TORCH, **types)(x)
  return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def pool_scores(scores: jax.Array, how: Pool = 'mean', mask: jax.Array | None = None) -> jax.Array:
  """Scores of a scene, of the scores of its tokens.

  Args:
    scores: `[batch, tokens, classes]`.
    how: 'mean' or 'max'; the code's larger of both is the maximum.
    mask: bool `[batch, tokens]`, False for tokens that take no part.

  Returns:
    `[batch, classes]`.
  """
  if mask is None:
    mask = jnp.ones(scores.shape[:2], bool)
  mask = mask[..., None]
  if how == 'mean':
    return jnp.where(mask, scores, 0).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)
  return jnp.where(mask, scores, jnp.finfo(scores.dtype).min).max(axis=1)


def class_logits(tokens: jax.Array, num_classes: int) -> jax.Array:
  """The mean over the channels of each class token, `[batch, classes]` in at least float32."""
  tokens = tokens[:, :num_classes]
  return tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32)).mean(axis=-1)


def token_similarity(logits: Sequence[jax.Array], num_classes: int) -> jax.Array:
  """The N-pair loss of both modalities' class tokens, the lower the better aligned.

  A class token of the one modality is to look at that of its own class among all class tokens of
  the other, and the other way round: cross-entropy both ways, a mean over classes and blocks.

  Args:
    logits: of the blocks of an `InterlacedDecoder`, `[batch, heads, queries, tokens]` each.
    num_classes: class tokens of either, which come first.

  Returns:
    `[batch]`.
  """

  def of_block(logits: jax.Array) -> jax.Array:
    logits = logits[..., :num_classes, :num_classes].mean(axis=1)
    own = jnp.eye(num_classes, dtype=logits.dtype)
    losses = optax.softmax_cross_entropy(jnp.stack([logits, jnp.swapaxes(logits, 1, 2)]), own)
    return losses.mean(axis=(0, 2))

  return sum(map(of_block, logits)) / len(logits)
