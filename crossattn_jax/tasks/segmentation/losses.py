"""Losses of semantic segmentation: scalars over the valid pixels of a batch.

Logits and labels have the same size here; `layers.resize` brings logits there. Under jit over a
mesh the batch is the global one.
"""

import dataclasses

import jax
import jax.numpy as jnp

from crossattn_jax.layers import resize

IGNORE_LABEL = 255


def pixel_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Log loss of the true class.

  Args:
    logits: `[..., classes]`.
    labels: integer classes `[...]`; those that do not exist lose the log of the summed
      exponentials, and are masked by whoever calls.

  Returns:
    `[...]`, in at least float32.
  """
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return jax.nn.logsumexp(logits, axis=-1) - _pick(logits, labels)


def _pick(x: jax.Array, labels: jax.Array) -> jax.Array:
  """The entry of the label's class; as a sum, since gathers are slow on TPUs."""
  classes = jnp.arange(x.shape[-1], dtype=labels.dtype)
  return jnp.sum(jnp.where(labels[..., None] == classes, x, 0), axis=-1)


def _masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
  return jnp.sum(jnp.where(mask, x, 0)) / jnp.maximum(jnp.sum(mask, dtype=x.dtype), 1)


def cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  *,
  ignore_label: int = IGNORE_LABEL,
  class_weights: jax.Array | None = None,
  count_ignored: bool = False,
) -> jax.Array:
  """Mean log loss of the true classes.

  Args:
    logits: `[batch, height, width, classes]`.
    labels: integer classes `[batch, height, width]`.
    ignore_label: label of pixels without a class.
    class_weights: `[classes]`; the mean is then a weighted one.
    count_ignored: whether to divide by the number of all pixels, as mmsegmentation does, rather
      than by that (or the weight) of those with a class. Weights then only multiply.

  Returns:
    A scalar; 0 where no pixel has a class.
  """
  valid = labels != ignore_label
  loss = pixel_cross_entropy(logits, labels)
  weights = valid.astype(loss.dtype)
  if class_weights is not None:
    weights *= jnp.where(valid, class_weights.astype(loss.dtype)[jnp.where(valid, labels, 0)], 0)
  total = jnp.sum(jnp.where(valid, loss, 0) * weights)
  if count_ignored:
    return total / labels.size
  weight = jnp.sum(weights)
  return total / jnp.where(weight > 0, weight, 1)


def ohem_threshold(
  logits: jax.Array,
  labels: jax.Array,
  *,
  threshold: float = 0.7,
  min_kept: int = 100_000,
  ignore_label: int = IGNORE_LABEL,
  factor: int = 8,
) -> jax.Array:
  """The probability of the true class up to which pixels are hard enough to be learnt.

  It is looked for on a map that is smaller by `factor`, made as by `scipy.ndimage.zoom`: at sizes
  whose last row or column it misses, both label and probability are 0 there.

  Args:
    logits: `[batch, height, width, classes]`.
    labels: integer classes `[batch, height, width]`.
    threshold: what it is at least.
    min_kept: how many pixels it keeps at least.
    ignore_label: label of pixels without a class.
    factor: see above.

  Returns:
    A scalar without gradient.
  """
  logits = jax.lax.stop_gradient(logits)
  probabilities = _softmax(logits)
  size = tuple(round(length / factor) for length in labels.shape[1:])
  small = resize.resize(probabilities, size, 'bilinear', align_corners=True)
  rows, columns = (
    resize.nearest_corner_aligned(length, short)
    for length, short in zip(labels.shape[1:], size, strict=True)
  )
  reached = resize.reached_by_zoom(labels.shape[1:], size)
  small = jnp.where(reached[..., None], small, 0)
  small_labels = jnp.where(reached, labels[:, rows][:, :, columns], 0)
  valid = small_labels != ignore_label
  true = jnp.where(valid, _pick(small, small_labels), jnp.inf).reshape(-1)
  kept = min_kept // factor**2
  if kept == 0:
    return jnp.asarray(threshold, true.dtype)
  in_order = jnp.sort(true)
  # Fewer valid pixels than wanted: all of them.
  rank = jnp.minimum(kept, true.size) - 1
  return jnp.where(
    kept >= jnp.sum(valid), jnp.ones((), true.dtype), jnp.maximum(in_order[rank], threshold)
  )


def _softmax(logits: jax.Array) -> jax.Array:
  """Softmax over the last axis in at least float32."""
  return jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)


def ohem_cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  *,
  threshold: float = 0.7,
  min_kept: int = 100_000,
  ignore_label: int = IGNORE_LABEL,
  factor: int = 8,
) -> jax.Array:
  """Mean log loss of the hard pixels (online hard example mining; arXiv 1604.03540).

  Args:
    logits: `[batch, height, width, classes]`.
    labels: integer classes `[batch, height, width]`.
    threshold: pixels whose true class has at most this probability are hard.
    min_kept: how many are hard at least.
    ignore_label: label of pixels without a class.
    factor: see `ohem_threshold`.

  Returns:
    A scalar; 0 where no pixel has a class.
  """
  limit = ohem_threshold(
    logits, labels, threshold=threshold, min_kept=min_kept, ignore_label=ignore_label, factor=factor
  )
  true = jax.lax.stop_gradient(_pick(_softmax(logits), labels))
  hard = (labels != ignore_label) & (true <= limit)
  return _masked_mean(pixel_cross_entropy(logits, labels), hard)


def lovasz_softmax(
  logits: jax.Array, labels: jax.Array, *, ignore_label: int = IGNORE_LABEL
) -> jax.Array:
  """The Lovasz extension of the Jaccard loss (Berman et al. 2018, arXiv 1705.08790).

  Of all pixels of the batch together, as a mean over the classes that have pixels.

  Args:
    logits: `[batch, height, width, classes]`.
    labels: integer classes `[batch, height, width]`.
    ignore_label: label of pixels without a class.

  Returns:
    A scalar; 0 where no pixel has a class.
  """
  num_classes = logits.shape[-1]
  probabilities = jnp.moveaxis(_softmax(logits).reshape(-1, num_classes), -1, 0)
  labels = labels.reshape(-1)
  valid = labels != ignore_label

  def class_loss(probability: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    true = (labels == index) & valid
    # Pixels without a class come last and weigh nothing.
    errors = jnp.where(valid, jnp.abs(true - probability), 0)
    order = jnp.argsort(-jax.lax.stop_gradient(errors))
    true_in_order = true[order].astype(jnp.int32)
    count = jnp.sum(true_in_order)
    found = jnp.cumsum(true_in_order)
    false = jnp.arange(1, true.size + 1) - found
    jaccard = 1 - (count - found).astype(errors.dtype) / (count + false).astype(errors.dtype)
    steps = jnp.diff(jaccard, prepend=jnp.zeros(1, jaccard.dtype))
    return jnp.sum(errors[order] * steps), count > 0

  losses, present = jax.vmap(class_loss)(probabilities, jnp.arange(num_classes))
  return _masked_mean(losses, present)


@dataclasses.dataclass(frozen=True)
class CategoryConsistency:
  """The terms of the category consistent loss.

  Attributes:
    variance: how far embeddings are from the mean of their class.
    distance: how close the means of different classes are.
    norm: of the means.
  """

  variance: jax.Array
  distance: jax.Array
  norm: jax.Array

  def total(
    self, variance_weight: float = 1.0, distance_weight: float = 1.0, norm_weight: float = 0.001
  ) -> jax.Array:
    """The weighted sum, by default with the paper's weights."""
    return (
      variance_weight * self.variance + distance_weight * self.distance + norm_weight * self.norm
    )


jax.tree_util.register_dataclass(CategoryConsistency, ['variance', 'distance', 'norm'], [])


def category_consistency(
  embeddings: jax.Array,
  labels: jax.Array,
  num_classes: int,
  *,
  inner: float = 0.5,
  outer: float = 1.5,
  piecewise: bool = True,
  ignore_label: int = IGNORE_LABEL,
) -> CategoryConsistency:
  """Embeddings of a class lie close together, those of others apart (1811.11721v2, section 3.4).

  The paper leaves open what docs/ccnet.md decides.

  Args:
    embeddings: `[batch, rows, columns, channels]`.
    labels: integer classes `[batch, height, width]`, sampled where the embeddings' pixels are.
    num_classes: how many there are.
    inner: distance from the mean that costs nothing (delta_v).
    outer: half the distance between means that costs nothing, and the distance from the mean from
      which the cost grows linearly (delta_d).
    piecewise: whether it does; False lets it grow quadratically, the paper's ablation.
    ignore_label: label of pixels without a class.

  Returns:
    The three terms, scalars; 0 where no pixel has a class.
  """
  dtype = jnp.promote_types(embeddings.dtype, jnp.float32)
  rows, columns = (
    resize.nearest_corner_aligned(length, short)
    for length, short in zip(labels.shape[1:], embeddings.shape[1:3], strict=True)
  )
  labels = labels[:, rows][:, :, columns].reshape(-1)
  points = embeddings.reshape(-1, embeddings.shape[-1]).astype(dtype)
  members = jax.nn.one_hot(jnp.where(labels == ignore_label, -1, labels), num_classes, dtype=dtype)
  counts = members.sum(axis=0)
  present = counts > 0
  shares = members / jnp.maximum(counts, 1)
  means = jnp.einsum('nk,nc->kc', shares, points, precision='highest')

  away = _norm(points - jnp.einsum('nk,kc->nc', members, means, precision='highest'))
  beyond = jnp.maximum(away - inner, 0)
  cost = jnp.square(beyond)
  if piecewise:
    cost = jnp.where(away > outer, away - outer + (outer - inner) ** 2, cost)
  number = jnp.maximum(present.sum(dtype=dtype), 1)
  variance = jnp.sum(shares.sum(axis=1) * cost) / number

  apart = _norm(means[:, None] - means[None])
  pairs = present[:, None] & present[None] & ~jnp.eye(num_classes, dtype=bool)
  too_close = jnp.square(jnp.maximum(2 * outer - apart, 0))
  distance = jnp.sum(jnp.where(pairs, too_close, 0)) / jnp.maximum(number * (number - 1), 1)
  norm = jnp.sum(jnp.where(present, _norm(means), 0)) / number
  return CategoryConsistency(variance, distance, norm)


def _norm(x: jax.Array) -> jax.Array:
  """Euclidean norm over the last axis with gradient 0 at 0."""
  squares = jnp.sum(jnp.square(x), axis=-1)
  positive = squares > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
