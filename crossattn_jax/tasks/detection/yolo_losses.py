"""YOLOv5's losses: which anchors of which cells learn an object, and what they learn.

An object is learnt by all anchors of similar sides, in its own cell and in the nearest neighbours.
All means are over the global batch, as the original's over one device's.
"""

from collections.abc import Mapping, Sequence
import math

from flax import linen as nn
from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.geometry import boxes as box_ops
from crossattn_jax.heads.detection import anchors as anchors_lib
from crossattn_jax.heads.detection import types
from crossattn_jax.tasks.detection import losses

# An object's own cell, and those on the left, above, on the right and below, as half steps (x, y).
_STEPS = np.array([(0, 0), (-0.5, 0), (0, -0.5), (0.5, 0), (0, 0.5)])


@struct.dataclass
class Positives:
  """Who learns what on one level: a slot for every step to a cell, anchor of a cell and object.

  Attributes:
    found: `[batch, 5, per_cell, objects]`, whether the slot counts. The others hold anything.
    cells: `[batch, 5, per_cell, objects, 2]` int32: row and column.
    boxes: `[batch, 5, per_cell, objects, 4]` in cells: centre from the cell's upper left corner,
      width, height.
    labels: `[batch, 5, per_cell, objects]` int32.
  """

  found: jax.Array
  cells: jax.Array
  boxes: jax.Array
  labels: jax.Array


def assign(
  truths: types.Truths, grid: anchors_lib.AnchorGrid, max_ratio: float = 4.0
) -> list[Positives]:
  """Assigns the objects of a batch; arguments and result are `assign_centers`'s."""
  boxes = box_ops.to_center_size(truths.boxes)
  return assign_centers(boxes, truths.labels, grid, max_ratio)


def assign_centers(
  boxes: jax.Array, labels: jax.Array, grid: anchors_lib.AnchorGrid, max_ratio: float = 4.0
) -> list[Positives]:
  """Assigns objects to anchors and cells.

  Args:
    boxes: `[batch, objects, 4]`: x_center, y_center, width, height in pixels of the input.
    labels: `[batch, objects]` int32, -1 in padding. Boxes without area are padding too.
    grid: the anchors.
    max_ratio: an anchor learns an object if the ratio of the widths, and that of the heights, the
      larger over the smaller, are below it.

  Returns:
    Of every level.
  """
  boxes = lax.stop_gradient(boxes)
  real = (labels >= 0) & jnp.all(boxes[..., 2:] > 0, axis=-1)
  boxes = jnp.where(real[..., None], boxes, 1)  # Padding may hold anything.
  shape = (len(boxes), len(_STEPS), grid.anchors.per_cell, boxes.shape[1])
  levels = []
  for stride, sizes, (height, width) in zip(
    grid.anchors.strides, grid.anchors.sizes, grid.map_sizes, strict=True
  ):
    center, size = jnp.split(boxes / stride, 2, axis=-1)
    ratio = size[:, None] / (jnp.asarray(sizes, size.dtype) / stride)[:, None]
    similar = jnp.max(jnp.maximum(ratio, 1 / ratio), axis=-1) < max_ratio

    map_size = jnp.asarray([width, height], center.dtype)
    sides = jnp.concatenate([center, map_size - center], axis=-1)  # To the left, up, right, down.
    near = jnp.moveaxis((sides % 1 < 0.5) & (sides > 1), -1, 1)
    near = jnp.concatenate([jnp.ones_like(near[:, :1]), near], axis=1)

    # The index is clamped first: a centre on the border is a whole cell from the last one's corner.
    cells = jnp.trunc(center[:, None] + jnp.asarray(_STEPS, center.dtype)[:, None])
    cells = jnp.clip(cells, 0, map_size - 1)
    targets = jnp.concatenate(
      [center[:, None] - cells, jnp.broadcast_to(size[:, None], cells.shape)], axis=-1
    )
    levels.append(
      Positives(
        found=near[:, :, None] & (similar & real[:, None])[:, None],
        cells=jnp.broadcast_to(cells[:, :, None, :, ::-1].astype(jnp.int32), (*shape, 2)),
        boxes=jnp.broadcast_to(targets[:, :, None], (*shape, 4)),
        labels=jnp.broadcast_to(labels[:, None, None], shape),
      )
    )
  return levels


def scaled_gains(
  num_classes: int,
  image_size: Sequence[int],
  num_levels: int = 3,
  *,
  box: float = 0.05,
  objectness: float = 1.0,
  classes: float = 0.5,
) -> dict[str, float]:
  """YOLOv5's weights of the losses.

  Args:
    num_classes: of objects.
    image_size: (height, width) of the input.
    num_levels: of the pyramid.
    box: the weight for three levels.
    objectness: the weight for three levels and a longer side of 640 pixels.
    classes: the weight for three levels and 80 classes.
  """
  share = 3 / num_levels
  return {
    'box_loss': box * share,
    'objectness_loss': objectness * (max(image_size) / 640) ** 2 * share,
    'class_loss': classes * num_classes / 80 * share,
  }


def yolo_losses(
  outputs: Mapping[str, jax.Array],
  positives: Sequence[Positives],
  grid: anchors_lib.AnchorGrid,
  *,
  gains: Mapping[str, float],
  balance: Sequence[float] = (4.0, 1.0, 0.4),
  iou_share: float = 1.0,
  label_smoothing: float = 0.0,
  gamma: float = 0.0,
  objectness_weight: float = 1.0,
  class_weight: float = 1.0,
) -> dict[str, jax.Array]:
  """YOLOv5's losses. The original multiplies their sum by the size of the batch.

  Boxes learn the complete IoU; objectness of an anchor learns the largest complete IoU of those
  that it has with its objects, 0 without one.

  Args:
    outputs: of `YoloHead`.
    positives: of every level, as `assign` returns them.
    grid: the anchors.
    gains: of the losses, by name; see `scaled_gains`.
    balance: weights of the levels' objectness.
    iou_share: how much of an anchor's objectness is the IoU; the rest is 1.
    label_smoothing: the class is `1 - label_smoothing / 2`, others are `label_smoothing / 2`.
    gamma: of the focal loss, for objectness and classes; 0 for cross-entropy.
    objectness_weight: of what is an object, in the cross-entropy.
    class_weight: of what is the class, in the cross-entropy.

  Returns:
    'box_loss', 'objectness_loss' and 'class_loss'; the last one is 0 for a single class.
  """
  plain = {'box_loss': 0.0, 'objectness_loss': 0.0, 'class_loss': 0.0}
  for rows, level, size, (_, width), stride, weight in zip(
    grid.levels,
    positives,
    grid.anchors.sizes,
    grid.map_sizes,
    grid.anchors.strides,
    balance,
    strict=True,
  ):
    slots, anchor, indices = _in_a_row(level, width)
    number = jnp.maximum(jnp.sum(slots.found), 1)
    of_slots = lambda name, rows=rows, indices=indices: jnp.take_along_axis(
      outputs[name][:, rows], indices[..., None], axis=1
    )

    shift, scale = jnp.split(2 * nn.sigmoid(of_slots('box_logits')), 2, axis=-1)
    sides = scale**2 * (jnp.asarray(size, scale.dtype) / stride)[anchor]
    boxes = jnp.concatenate([shift - 0.5, sides], axis=-1)
    targets = slots.boxes.astype(boxes.dtype)
    overlap = box_ops.ciou(box_ops.from_center_size(boxes), box_ops.from_center_size(targets))
    plain['box_loss'] += jnp.sum(jnp.where(slots.found, 1 - overlap, 0)) / number

    logits = outputs['objectness'][:, rows]
    wanted = 1 - iou_share + iou_share * jnp.maximum(lax.stop_gradient(overlap), 0)
    wanted = _largest(logits.shape[1], indices, jnp.where(slots.found, wanted, 0))
    entropy = losses.binary_cross_entropy(
      logits, wanted, positive_weight=objectness_weight, gamma=gamma or None
    )
    plain['objectness_loss'] += weight * jnp.mean(entropy)

    logits = of_slots('logits')
    num_classes = logits.shape[-1]
    if num_classes > 1:
      true = slots.labels[..., None] == jnp.arange(num_classes)
      wanted = jnp.where(true, 1 - label_smoothing / 2, label_smoothing / 2)
      entropy = losses.binary_cross_entropy(
        logits, wanted.astype(logits.dtype), positive_weight=class_weight, gamma=gamma or None
      )
      entropy = jnp.where(slots.found[..., None], entropy, 0)
      plain['class_loss'] += jnp.sum(entropy) / (number * num_classes)
  return {name: gains[name] * jnp.asarray(loss) for name, loss in plain.items()}


def _in_a_row(level: Positives, width: int) -> tuple[Positives, jax.Array, jax.Array]:
  """The slots of every image in a row `[batch, slots]`, whose map is `width` cells wide.

  Returns:
    What they hold, which anchor of its cell each is, and which of the level's.
  """
  per_cell = level.found.shape[2]
  anchor = jnp.broadcast_to(jnp.arange(per_cell)[:, None], level.found.shape)
  row, column = jnp.unstack(level.cells, axis=-1)
  parts = level, anchor, (row * width + column) * per_cell + anchor
  return jax.tree.map(lambda x: x.reshape(len(x), math.prod(x.shape[1:4]), *x.shape[4:]), parts)


def _largest(count: int, indices: jax.Array, values: jax.Array) -> jax.Array:
  """`[batch, count]`: at each index the largest of its values, none below 0; both `[batch, n]`."""
  zeros = jnp.zeros(count, values.dtype)
  return jax.vmap(lambda at, values: zeros.at[at].max(values))(indices, values)
