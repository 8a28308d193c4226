"""Losses of detectors whose queries are matched one to one with objects.

Source: DETR, Carion et al. 2020 (arXiv 2005.12872), section 3.1; with focal losses as in Deformable
DETR, Zhu et al. 2021 (arXiv 2010.04159), appendix A.4. Boxes are centres and sizes as fractions of
the image: these losses weigh a small image like a large one.
"""

from collections.abc import Mapping, Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from crossattn_jax import parallel
from crossattn_jax.geometry import assignment
from crossattn_jax.geometry import boxes as box_ops
from crossattn_jax.tasks.detection import losses as losses_lib

Losses = dict[str, jax.Array]

# Fractions of an image have small areas.
_EPS = 1e-12


def matching_cost(
  logits: jax.Array,
  boxes: jax.Array,
  labels: jax.Array,
  truths: jax.Array,
  *,
  class_weight: float = 2,
  box_weight: float = 5,
  giou_weight: float = 2,
  alpha: float = 0.25,
  gamma: float = 2,
) -> jax.Array:
  """What it costs that a query finds an object (equations 1 and 2).

  Args:
    logits: `[..., queries, classes]`.
    boxes: `[..., queries, 4]`.
    labels: `[..., truths]`, -1 in padding.
    truths: `[..., truths, 4]`.
    class_weight: of the focal loss that the query's label had, less what it has without.
    box_weight: of the sum of the absolute differences of boxes.
    giou_weight: of one less the generalized IoU, less one.
    alpha: see `losses.focal_loss`.
    gamma: see there.

  Returns:
    `[..., queries, truths]`, 0 in padding.
  """
  probability = nn.sigmoid(logits)
  found = alpha * (1 - probability) ** gamma * -jnp.log(probability + 1e-8)
  missed = (1 - alpha) * probability**gamma * -jnp.log(1 - probability + 1e-8)
  of_labels = jnp.maximum(labels, 0)[..., None, :]
  of_class = jnp.take_along_axis(found - missed, of_labels, axis=-1)
  pairs = boxes[..., :, None, :], truths[..., None, :, :]
  distance = jnp.abs(pairs[0] - pairs[1]).sum(axis=-1)
  overlap = box_ops.giou(*map(box_ops.from_center_size, pairs), eps=_EPS)
  cost = class_weight * of_class + box_weight * distance - giou_weight * overlap
  return jnp.where(labels[..., None, :] >= 0, cost, 0)


def match(
  logits: jax.Array, boxes: jax.Array, labels: jax.Array, truths: jax.Array, **weights: float
) -> jax.Array:
  """The query of each object, at least cost (equation 1).

  Args:
    logits: `[batch, queries, classes]`.
    boxes: `[batch, queries, 4]`.
    labels: `[batch, truths]`, -1 in padding.
    truths: `[batch, truths, 4]`.
    **weights: of `matching_cost`.

  Returns:
    `[batch, truths]` int32, -1 in padding.
  """
  cost = matching_cost(logits, boxes, labels, truths, **weights)
  return parallel.map_batch(assignment.hungarian_matching, cost, labels >= 0)


def labels_of_queries(queries: jax.Array, labels: jax.Array, count: int) -> jax.Array:
  """The label that each of `count` queries is to have, `[batch, count]`, -1 for none."""
  is_own = queries[:, None] == jnp.arange(count)[:, None]
  return jnp.max(
    jnp.where(is_own & (labels >= 0)[:, None], labels[:, None], -1), axis=-1, initial=-1
  )


def set_losses(
  logits: jax.Array,
  boxes: jax.Array,
  labels: jax.Array,
  truths: jax.Array,
  queries: jax.Array,
  count: jax.Array | float,
  *,
  alpha: float = 0.25,
  gamma: float = 2,
) -> Losses:
  """Losses of one level, given its matching (equation 2 and section 3.1).

  Args:
    logits: `[batch, queries, classes]`.
    boxes: `[batch, queries, 4]`.
    labels: `[batch, truths]`, -1 in padding.
    truths: `[batch, truths, 4]`.
    queries: of `match`.
    count: of objects by which all losses are divided, at least 1.
    alpha: see `losses.focal_loss`.
    gamma: see there.

  Returns:
    'class_loss', 'box_loss' and 'giou_loss', scalars.
  """
  wanted = labels_of_queries(queries, labels, logits.shape[1])
  of_class = losses_lib.focal_loss(
    logits, wanted, jnp.ones(wanted.shape, logits.dtype), alpha=alpha, gamma=gamma
  )
  found, is_truth = losses_lib.rows_at(boxes, queries), labels >= 0
  distance = jnp.abs(found - truths).sum(axis=-1)
  overlap = box_ops.giou(*map(box_ops.from_center_size, (found, truths)), eps=_EPS)
  sums = {
    'class_loss': of_class.sum(),
    'box_loss': jnp.where(is_truth, distance, 0).sum(),
    'giou_loss': jnp.where(is_truth, 1 - overlap, 0).sum(),
  }
  return {name: value / count for name, value in sums.items()}


def number_of_objects(labels: jax.Array) -> jax.Array:
  """Of the global batch, by which set losses are divided; at least 1."""
  return jnp.maximum(jnp.sum(labels >= 0), 1)


def class_error(logits: jax.Array, labels: jax.Array, queries: jax.Array) -> jax.Array:
  """Per cent of the objects whose query has the highest logit in another class; 100 of none."""
  right = (jnp.argmax(losses_lib.rows_at(logits, queries), axis=-1) == labels) & (labels >= 0)
  return 100 - 100 * jnp.sum(right) / jnp.maximum(jnp.sum(labels >= 0), 1)


def cardinality_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """How far the number of queries whose best class is not the last is from that of objects."""
  found = jnp.sum(jnp.argmax(logits, axis=-1) != logits.shape[-1] - 1, axis=-1)
  return jnp.mean(jnp.abs(found - jnp.sum(labels >= 0, axis=-1)))


def iou_loss(
  ious: jax.Array,
  boxes: jax.Array,
  labels: jax.Array,
  truths: jax.Array,
  queries: jax.Array,
  count: jax.Array | float,
) -> jax.Array:
  """Cross-entropy of what a query says its IoU is, a logit; the box follows it too.

  Args:
    ious: `[batch, queries]`, logits.
    boxes: as in `set_losses`, like all others.
    labels: see there.
    truths: see there.
    queries: see there.
    count: see there.
  """
  found = losses_lib.rows_at(boxes, queries)
  overlap = box_ops.iou(*map(box_ops.from_center_size, (found, truths)), eps=_EPS)
  loss = optax.losses.sigmoid_binary_cross_entropy(losses_lib.rows_at(ious, queries), overlap)
  return jnp.where(labels >= 0, loss, 0).sum() / count


def margin_loss(scores: jax.Array, matched: jax.Array, margin: float) -> jax.Array:
  """By how much less than a margin an image's matched queries score above the others, in the mean.

  An experiment of the sketch localizer's authors, which they logged and gave no weight.

  Args:
    scores: `[batch, queries]`.
    matched: bool, the same shape.
    margin: that is enough.
  """
  # Counted in float32, in any precision, as the authors did.
  count = matched.sum(axis=-1, dtype=jnp.float32) + jnp.float32(0.1)
  own = jnp.where(matched, scores, 0).sum(axis=-1) / count
  others = jnp.where(matched, 0, scores).sum(axis=-1) / jnp.maximum((~matched).sum(axis=-1), 1)
  return jnp.mean(nn.relu(margin - (own - others)))


def pair_margin_loss(scores: jax.Array, matched: jax.Array, margin: float) -> jax.Array:
  """The same of all pairs of queries: of one kind they are to score alike, of two kinds apart.

  Args:
    scores: see `margin_loss`.
    matched: see there.
    margin: added to how far the difference of two scores is off; what is left below 0 is right.
  """
  differ = matched[:, :, None] != matched[:, None]
  distance = jnp.abs(scores[:, :, None] - scores[:, None]) - differ
  return jnp.mean(nn.relu(jnp.where(differ, -distance, distance) + margin))


def token_matching_loss(student: Sequence[jax.Array], teacher: Sequence[jax.Array]) -> jax.Array:
  """The root of the summed mean distances of a student's tokens from a teacher's.

  Source: ViDT, Song et al. 2022 (arXiv 2110.03921), section 3.3.

  Args:
    student: `[..., channels]`, each: maps, detection tokens, queries of every layer.
    teacher: the same shapes; without gradient.
  """
  return jnp.sqrt(
    sum(
      jnp.linalg.norm(own - jax.lax.stop_gradient(other), axis=-1).mean()
      for own, other in zip(student, teacher, strict=True)
    )
  )


def weighted_sum(losses: Mapping[str, jax.Array], weights: Mapping[str, float]) -> jax.Array:
  """The sum of the losses that have a weight."""
  return sum(weight * losses[name] for name, weight in weights.items())
