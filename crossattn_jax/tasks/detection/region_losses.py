"""Losses of detectors with a second stage: of the regions' classes, boxes and masks.

Source: Faster R-CNN, Ren et al. 2015 (arXiv 1506.01497), and Mask R-CNN, He et al. 2017 (arXiv
1703.06870), section 3; weighted and divided as in mmdetection, by numbers in the global batch.
"""

from collections.abc import Mapping, Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from crossattn_jax import parallel
from crossattn_jax.geometry import assignment, encoding, masks
from crossattn_jax.heads.detection import anchors as anchors_lib
from crossattn_jax.heads.detection import mask_head, types
from crossattn_jax.heads.detection import regions as regions_lib
from crossattn_jax.tasks.detection import losses


def class_loss(
  logits: jax.Array, labels: jax.Array, weights: jax.Array, number: jax.Array | float
) -> jax.Array:
  """Softmax cross-entropy.

  Args:
    logits: `[..., classes]`.
    labels: integer classes `[...]`.
    weights: `[...]`, of the examples.
    number: of examples by which the sum is divided.
  """
  terms = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
  return jnp.sum(weights * terms) / (number + losses.EPS)


def mask_targets(
  truths: types.Truths, regions: jax.Array, assigned: jax.Array, side: int
) -> jax.Array:
  """The part of an object's mask that lies in each region.

  Args:
    truths: of the batch.
    regions: `[batch, count, 4]`.
    assigned: `[batch, count]`, the truth of every region, below 0 for none.
    side: cells of a region's mask.

  Returns:
    `[batch, count, side, side]` booleans.

  Raises:
    ValueError: the truths have no masks.
  """
  if truths.masks is None:
    raise ValueError(
      'the model learns masks, and the data has none: set config.dataset.masks=True, or take a '
      "model without masks, such as 'BACKBONE+faster_rcnn', as config.model.name"
    )
  of_image = functools.partial(masks.mask_targets, side=side)
  return parallel.map_batch(of_image, truths.masks, regions, assigned)


def mask_loss(
  logits: jax.Array, targets: jax.Array, labels: jax.Array, is_positive: jax.Array
) -> jax.Array:
  """Binary cross-entropy of the masks of the regions' own classes, the mean over all pixels.

  Args:
    logits: `[..., side, side, classes]`.
    targets: `[..., side, side]`, 1 where the object is, else 0.
    labels: `[...]`, the class of every region's object.
    is_positive: `[...]`, False where there is no object.
  """
  logits = mask_head.of_class(logits, labels)
  terms = optax.losses.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype))
  terms = jnp.where(is_positive, jnp.mean(terms, axis=(-2, -1)), 0)
  return jnp.sum(terms) / jnp.maximum(jnp.sum(is_positive), 1)


def region_losses(
  outputs: Mapping[str, jax.Array],
  truths: types.Truths,
  *,
  stds: Sequence[float] = regions_lib.STDS,
) -> losses.Losses:
  """The losses of box and mask head.

  Args:
    outputs: of `MaskRCNN`, where it trains on truths.
    truths: these.
    stds: of the encoding of boxes.

  Returns:
    'class_loss' and 'box_loss', with a mask head 'mask_loss'; and 'region_accuracy', the part of
    the regions whose best class is right.

  Raises:
    ValueError: there is a mask head, and the truths have no masks.
  """
  regions, assigned = outputs['proposals'], outputs['assigned']
  logits, deltas = outputs['class_logits'], outputs['box_deltas']
  classes = deltas.shape[-2]
  drawn, found = assigned != assignment.IGNORED, assigned >= 0
  number = jnp.maximum(jnp.sum(drawn), 1)
  labels = jnp.where(found, losses.rows_at(truths.labels, assigned), classes)

  # A sum, whose gradient is no scatter.
  is_class = nn.one_hot(labels, classes, dtype=bool)[..., None]
  own_deltas = jnp.sum(jnp.where(is_class, deltas, 0), axis=-2)
  targets = encoding.encode(regions, losses.rows_at(truths.boxes, assigned), stds=stds)
  boxes = losses.box_loss(own_deltas, targets, found[..., None])
  right = drawn & (jnp.argmax(logits, axis=-1) == labels)
  result = {
    'class_loss': class_loss(logits, labels, drawn, number),
    'box_loss': jnp.sum(boxes) / (number + losses.EPS),
    'region_accuracy': jnp.sum(right) / number,
  }
  if 'mask_logits' in outputs:
    logits = outputs['mask_logits']
    regions, assigned, labels, found = (
      x[:, : logits.shape[1]] for x in (regions, assigned, labels, found)
    )
    targets = mask_targets(truths, regions, assigned, logits.shape[2])
    result['mask_loss'] = mask_loss(logits, targets, labels, found)
  return result


def mask_rcnn_losses(
  outputs: Mapping[str, jax.Array],
  truths: types.Truths,
  image_size: jax.Array,
  grid: anchors_lib.AnchorGrid,
  key: jax.Array,
) -> losses.Losses:
  """The losses of both stages.

  Args:
    outputs: of `MaskRCNN`, where it trains on truths.
    truths: these.
    image_size: (height, width) of the images in pixels, `[batch, 2]`.
    grid: the anchors.
    key: of the draw of anchors.

  Returns:
    Those of `rpn_losses` and of `region_losses`.
  """
  return losses.rpn_losses(outputs, truths, image_size, grid, key) | region_losses(outputs, truths)
