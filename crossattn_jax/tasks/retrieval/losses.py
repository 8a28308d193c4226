"""Losses of image-sentence matching on a batch of matching pairs; the others are the negatives.

Source: MMCA (docs/mmca.md) trains by the triplet loss, its predecessor SAEM (yiling2018/saem) by
all three. All are sums over the batch in the originals, which here return a value per pair: the
batch must be the global one, or harder negatives are missed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.layers import similarity
from crossattn_jax.parallel import parameters


def triplet_loss(
  scores: jax.Array,
  *,
  margin: float = 0.2,
  hardest: bool = True,
  image_ids: jax.Array | None = None,
) -> jax.Array:
  """By how much negatives come within the margin of their pair (VSE++, arXiv 1707.05612).

  Args:
    scores: of every text for every image, `[images, texts]`; text i matches image i.
    margin: that a pair's score should be above those of its image with other texts, and of its text
      with other images.
    hardest: whether the worst negative of either kind counts, or else all of them.
    image_ids: `[images]`; texts of images of the same id are no negatives. None: all others are.

  Returns:
    `[images]` in at least float32; both kinds of negatives added.

  Raises:
    ValueError: there are not as many texts as images.
  """
  count = scores.shape[0]
  if scores.shape != (count, count):
    raise ValueError(f'expected scores of as many texts as images, not of shape {scores.shape}')
  scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
  ids = jnp.arange(count) if image_ids is None else image_ids
  negative = ids[:, None] != ids
  matching = jnp.diagonal(scores)
  reduce = jnp.max if hardest else jnp.sum

  def cost(reference: jax.Array, axis: int) -> jax.Array:
    # Clamped before the maximum, so that a pair without negatives within the margin costs nothing.
    excess = jnp.maximum(margin + scores - reference, 0)
    return reduce(jnp.where(negative, excess, 0), axis=axis)

  return cost(matching[:, None], axis=1) + cost(matching[None], axis=0)


def angular_loss(images: jax.Array, texts: jax.Array, *, tan_squared: float = 1.0) -> jax.Array:
  """Bounds the angle at the hardest negative of the triangle that it forms with a pair.

  Wang et al., "Deep Metric Learning with Angular Loss" (arXiv 1708.01682), with the largest
  exponential instead of the sum over the negatives, as SAEM has it.

  Args:
    images: embeddings `[batch, channels]`.
    texts: those of the matching texts, `[batch, channels]`.
    tan_squared: of the largest angle that costs little.

  Returns:
    `[batch]` in at least float32; images and texts as anchors added.
  """
  dtype = jnp.promote_types(jnp.result_type(images, texts), jnp.float32)
  images, texts = images.astype(dtype), texts.astype(dtype)
  matching = jnp.sum(images * texts, axis=-1)
  itself = jnp.eye(len(images), dtype=bool)

  def cost(negatives: jax.Array) -> jax.Array:
    exponents = 4 * tan_squared * similarity.dot_products(images + texts, negatives)
    exponents -= 2 * (1 + tan_squared) * matching[:, None]
    hardest = jnp.max(jnp.where(itself, -jnp.inf, exponents), axis=-1)
    return jnp.logaddexp(hardest, 0)

  return cost(texts) + cost(images)


def angular_weight(epoch: jax.Array) -> jax.Array:
  """SAEM's weight of the angular loss: 0.5, a tenth of it every 5 epochs, 0 after the 21st.

  Args:
    epoch: counted from 0, a scalar; fractions are cut.
  """
  return jnp.where(epoch < 21, 0.5 * 0.1 ** jnp.floor(epoch / 5), 0.0)


def norm_penalty(params: Any) -> jax.Array:
  """Sum of the lengths, not squared, of all kernels; SAEM takes 0.01 of the image branch's.

  Args:
    params: a tree of parameters; biases and scales of norms do not count.

  Returns:
    A scalar in at least float32.
  """
  kernels = [
    leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    for path, leaf in parameters.leaves_by_path(params).items()
    if path.endswith('kernel')
  ]
  return sum(jnp.sqrt(jnp.sum(kernel**2)) for kernel in kernels)
