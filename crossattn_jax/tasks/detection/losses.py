"""Losses of detectors: scalars over a batch, by name.

They are divided by numbers of examples in the global batch, as mmdetection divides by those on one
device. Nothing is differentiated with respect to boxes of objects or anchors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from crossattn_jax import parallel
from crossattn_jax.geometry import assignment, encoding
from crossattn_jax.geometry import boxes as box_ops
from crossattn_jax.heads.detection import anchors as anchors_lib
from crossattn_jax.heads.detection import types

Losses = dict[str, jax.Array]

# mmdetection adds it to the number of examples by which a loss is divided.
EPS = float(np.finfo(np.float32).eps)

# Which anchors have an object: arguments of `assignment.max_iou_assignment`.
_RETINANET = {'positive': 0.5, 'negative': 0.4, 'min_positive': 0.0}
_PROPOSALS = {'positive': 0.7, 'negative': 0.3, 'min_positive': 0.3}


def focal_loss(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  alpha: float = 0.25,
  gamma: float = 2,
) -> jax.Array:
  """Cross-entropy of every class alone, in which what is well classified counts little.

  Source: Lin et al. 2017 (arXiv 1708.02002), equation 5.

  Args:
    logits: `[..., classes]`.
    labels: integer classes `[...]`; those that do not exist are background.
    weights: `[...]`, of the examples.
    alpha: weight of the true class; the others' is `1 - alpha`.
    gamma: power of the probability that is missing.

  Returns:
    `[...]`, summed over the classes.
  """

  @jax.checkpoint  # Logits are large: of all that the loss is computed of, they alone are kept.
  def of_logits(logits: jax.Array) -> jax.Array:
    true = labels[..., None] == jnp.arange(logits.shape[-1])
    wrong = jnp.where(true, -logits, logits)  # The logit of the answer that is not right.
    loss = jnp.where(true, alpha, 1 - alpha) * nn.sigmoid(wrong) ** gamma * nn.softplus(wrong)
    return loss.sum(axis=-1)

  return weights * of_logits(logits)


def binary_cross_entropy(
  logits: jax.Array,
  targets: jax.Array,
  *,
  positive_weight: float = 1.0,
  gamma: float | None = None,
  alpha: float = 0.25,
) -> jax.Array:
  """Cross-entropy of probabilities that may lie between 0 and 1, focal by option.

  Args:
    logits: `[...]`.
    targets: `[...]`, probabilities.
    positive_weight: of the part that is 1.
    gamma: power of the probability that is missing (Lin et al. 2017, arXiv 1708.02002); None for
      plain cross-entropy, without `alpha`.
    alpha: weight of the part that is 1; the rest's is `1 - alpha`.

  Returns:
    `[...]`.
  """
  loss = positive_weight * targets * nn.softplus(-logits) + (1 - targets) * nn.softplus(logits)
  if gamma is None:
    return loss
  missing = targets * nn.sigmoid(-logits) + (1 - targets) * nn.sigmoid(logits)
  missing = jnp.maximum(missing, jnp.finfo(missing.dtype).tiny)  # Its power has a finite slope.
  return (alpha * targets + (1 - alpha) * (1 - targets)) * missing**gamma * loss


def box_loss(
  deltas: jax.Array, targets: jax.Array, weights: jax.Array, beta: float = 0.0
) -> jax.Array:
  """Absolute differences of encoded boxes.

  Args:
    deltas: `[..., 4]`.
    targets: `[..., 4]`.
    weights: of the differences, of a shape that broadcasts against theirs.
    beta: differences up to it count as smooth L1: half their square over `beta`, and larger ones
      `beta / 2` less. 0 for L1.

  Returns:
    `[...]`, summed over the four.
  """
  difference = jnp.abs(deltas - targets)
  if beta:
    quadratic = jnp.square(difference) / (2 * beta)
    difference = jnp.where(difference < beta, quadratic, difference - beta / 2)
  return (weights * difference).sum(axis=-1)


def assign_anchors(
  truths: types.Truths,
  image_size: jax.Array,
  grid: anchors_lib.AnchorGrid,
  **thresholds: Any,
) -> jax.Array:
  """The truth that every anchor is to find, `[batch, anchors]`, `BACKGROUND` or `IGNORED`.

  Args:
    truths: the objects.
    image_size: (height, width) of the images, `[batch, 2]`: anchors beyond are ignored.
    grid: the anchors.
    **thresholds: of `assignment.max_iou_assignment`.
  """
  corners = grid.corners(truths.boxes.dtype)

  def of_image(boxes: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
    assigned, _ = assignment.max_iou_assignment(
      box_ops.iou(boxes[:, None], corners),
      (labels >= 0) & (box_ops.area(boxes) > 0),
      is_candidate=valid,
      **thresholds,
    )
    return assigned

  return jax.vmap(of_image)(truths.boxes, truths.labels, grid.valid(image_size))


def rows_at(values: jax.Array, indices: jax.Array) -> jax.Array:
  """Rows of `values` `[batch, rows, ...]`, of each of `indices` `[batch, count]`; any for none."""
  index = jnp.maximum(indices, 0).reshape(*indices.shape, *(1,) * (values.ndim - 2))
  return jnp.take_along_axis(values, index, axis=1)


def retinanet_terms(
  outputs: Mapping[str, jax.Array],
  truths: types.Truths,
  image_size: jax.Array,
  grid: anchors_lib.AnchorGrid,
  *,
  alpha: float = 0.25,
  gamma: float = 2,
  stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
  **thresholds: Any,
) -> Losses:
  """What every anchor adds to RetinaNet's losses, `[batch, anchors]` each.

  Args:
    outputs: 'logits' `[batch, anchors, classes]` and 'deltas' `[batch, anchors, 4]`.
    truths: the objects.
    image_size: (height, width) of the images in pixels, `[batch, 2]`.
    grid: the anchors.
    alpha: of the focal loss.
    gamma: of the focal loss.
    stds: of the encoding of boxes.
    **thresholds: of `assignment.max_iou_assignment`, where they are not RetinaNet's.

  Returns:
    'class_loss' and 'box_loss'.
  """
  assigned = assign_anchors(truths, image_size, grid, **{**_RETINANET, **thresholds})
  found = assigned >= 0
  # An image without objects counts as one of one.
  number = jnp.sum(jnp.maximum(jnp.sum(found, axis=1), 1))
  labels = jnp.where(found, rows_at(truths.labels, assigned), -1)
  classes = focal_loss(
    outputs['logits'], labels, assigned != assignment.IGNORED, alpha=alpha, gamma=gamma
  )
  targets = encoding.encode(
    grid.corners(truths.boxes.dtype),
    rows_at(truths.boxes, assigned),
    stds=stds,
    inclusive=grid.anchors.boxes.inclusive,
  )
  boxes = box_loss(outputs['deltas'], targets, found[..., None])
  return {'class_loss': classes / (number + EPS), 'box_loss': boxes / (number + EPS)}


def retinanet_losses(*args: Any, **thresholds: Any) -> Losses:
  """RetinaNet's losses, 'class_loss' and 'box_loss'; arguments are `retinanet_terms`'s."""
  return {name: term.sum() for name, term in retinanet_terms(*args, **thresholds).items()}


def sample_anchors(
  key: jax.Array | None, assigned: jax.Array, number: int = 256, positive_fraction: float = 0.5
) -> tuple[jax.Array, jax.Array]:
  """Draws the anchors of every image from which a region proposal network learns.

  Args:
    key: of the batch. An image's draw depends on its place in the batch, not on other images. None
      takes the first anchors.
    assigned: `[batch, anchors]`.
    number: of anchors of an image.
    positive_fraction: at most `int(number * positive_fraction)` anchors have an object.

  Returns:
    Indices and whether they were drawn, `[batch, number]` each, as `assignment.sample`.
  """

  def draw(assigned: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    return assignment.sample(key, assigned, number, positive_fraction)

  if key is None:
    return parallel.map_batch(draw, assigned)
  return parallel.map_batch(draw, assigned, jax.random.split(key, len(assigned)))


def rpn_terms(
  outputs: Mapping[str, jax.Array],
  truths: types.Truths,
  image_size: jax.Array,
  grid: anchors_lib.AnchorGrid,
  key: jax.Array | None,
  *,
  number: int = 256,
  positive_fraction: float = 0.5,
  stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
  **thresholds: Any,
) -> tuple[Losses, jax.Array]:
  """What every drawn anchor adds to the losses of a region proposal network.

  Args:
    outputs: 'objectness' `[batch, anchors]` and 'anchor_deltas' `[batch, anchors, 4]`.
    truths: the objects.
    image_size: (height, width) of the images in pixels, `[batch, 2]`.
    grid: the anchors.
    key: of the draw; see `sample_anchors`.
    number: of anchors of an image that are drawn.
    positive_fraction: see `sample_anchors`.
    stds: of the encoding of boxes.
    **thresholds: of `assignment.max_iou_assignment`, where they are not Faster R-CNN's.

  Returns:
    'objectness_loss' and 'proposal_loss', `[batch, number]` each, 0 where nothing was drawn; and
    the indices of the anchors, `[batch, number]`.
  """
  assigned = assign_anchors(truths, image_size, grid, **{**_PROPOSALS, **thresholds})
  indices, drawn = sample_anchors(key, assigned, number, positive_fraction)
  assigned = jnp.take_along_axis(assigned, indices, axis=1)
  found = drawn & (assigned >= 0)
  counts = [jnp.sum(mask, axis=1) for mask in (found, drawn & ~found)]
  total = sum(jnp.sum(jnp.maximum(count, 1)) for count in counts) + EPS

  logits = jnp.take_along_axis(outputs['objectness'], indices, axis=1)
  objectness = optax.losses.sigmoid_binary_cross_entropy(logits, found.astype(logits.dtype))
  deltas = jnp.take_along_axis(outputs['anchor_deltas'], indices[..., None], axis=1)
  targets = encoding.encode(
    grid.corners(truths.boxes.dtype)[indices],
    rows_at(truths.boxes, assigned),
    stds=stds,
    inclusive=grid.anchors.boxes.inclusive,
  )
  boxes = box_loss(deltas, targets, found[..., None])
  losses = {'objectness_loss': drawn * objectness / total, 'proposal_loss': boxes / total}
  return losses, lax.stop_gradient(indices)


def rpn_losses(*args: Any, **thresholds: Any) -> Losses:
  """'objectness_loss' and 'proposal_loss' of a region proposal network; see `rpn_terms`."""
  terms, _ = rpn_terms(*args, **thresholds)
  return {name: term.sum() for name, term in terms.items()}
