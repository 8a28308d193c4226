"""YOLOv5's head: objectness, classes and boxes of a few anchors a cell, by one convolution a level.

Source: Redmon and Farhadi 2018, "YOLOv3" (arXiv 1804.02767), section 2, with the boxes of YOLOv5.
"""

from collections.abc import Mapping, Sequence
import math

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import parallel
from crossattn_jax.geometry import boxes as box_ops
from crossattn_jax.geometry import suppression
from crossattn_jax.heads.detection import anchors as anchors_lib
from crossattn_jax.heads.detection import decoding, retinanet, types
from crossattn_jax.layers import convolution, initializers, module

# Found on COCO at 640 x 640.
COCO_ANCHORS = anchors_lib.SizedAnchors(
  strides=(8, 16, 32),
  sizes=(
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
  ),
)


class YoloHead(module.Module):
  """One convolution a level.

  Attributes:
    num_classes: of objects; the background has no logit.
    anchors_per_cell: of every level.
    prior_strides: pixels per cell of every level. With them an untrained head expects 8 objects in
      an image of 640 x 640, of any class alike, as YOLOv5's; without, half of all anchors.

  Examples:
    >>> maps = [jnp.ones((1, side, side, 64)) for side in (8, 4, 2)]
    >>> head = YoloHead(num_classes=3)
    >>> outputs, _ = jax.eval_shape(head.init_with_output, jax.random.key(0), maps)
    >>> outputs['logits'].shape
    (1, 252, 3)
  """

  num_classes: int
  anchors_per_cell: int = 3
  prior_strides: Sequence[int] | None = None

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array]) -> dict[str, jax.Array]:
    """Classifies and places the anchors of a pyramid.

    Args:
      maps: of the levels, `[batch, height, width, channels]`, finest first.

    Returns:
      'box_logits' `[batch, anchors, 4]`, 'objectness' `[batch, anchors]` and 'logits' `[batch,
      anchors, classes]`, in at least float32; anchors in the order of `anchors.AnchorGrid`.
    """
    channels = 5 + self.num_classes
    results = []
    for level, x in enumerate(maps):
      conv = convolution.convolution(
        x.shape[-1],
        self.anchors_per_cell * channels,
        1,
        bias_init=self._bias_init(level, x.shape[-1]),
        name=f'level_{level}',
        **self.types,
      )
      results.append(conv(x))
    rows = retinanet.rows_of_anchors(results, channels)
    return {'box_logits': rows[..., :4], 'objectness': rows[..., 4], 'logits': rows[..., 5:]}

  def _bias_init(self, level: int, channels_in: int) -> nn.initializers.Initializer:
    init = initializers.torch_convolution(channels_in)
    if self.prior_strides is None:
      return init
    objectness = math.log(8 / (640 / self.prior_strides[level]) ** 2)
    classes = math.log(0.6 / (self.num_classes - 0.99))
    prior = np.array([0.0] * 4 + [objectness] + [classes] * self.num_classes)
    prior = np.tile(prior, self.anchors_per_cell)
    return lambda key, shape, dtype: init(key, shape, dtype) + jnp.asarray(prior, dtype)


def decode_boxes(box_logits: jax.Array, grid: anchors_lib.AnchorGrid) -> jax.Array:
  """The boxes of all anchors.

  A centre is up to one cell from the middle of its own, a side up to four times its anchor's.

  Args:
    box_logits: `[batch, anchors, 4]`.
    grid: the anchors.

  Returns:
    `[batch, anchors, 4]`: x_center, y_center, width, height in pixels of the input.
  """
  dtype = box_logits.dtype
  center = box_ops.to_center_size(grid.corners(dtype))[:, :2]
  cells = [height * width for height, width in grid.map_sizes]
  levels = zip(grid.anchors.sizes, cells, strict=True)
  size = jnp.concatenate([jnp.tile(jnp.asarray(x, dtype), (count, 1)) for x, count in levels])
  stride = jnp.repeat(jnp.asarray(grid.anchors.strides, dtype), np.array(grid.counts))[:, None]
  shift, scale = jnp.split(2 * nn.sigmoid(box_logits), 2, axis=-1)
  return jnp.concatenate([center + (shift - 1) * stride, scale**2 * size], axis=-1)


def find_objects(
  boxes: jax.Array,
  objectness: jax.Array,
  classes: jax.Array,
  *,
  score_threshold: float = 0.001,
  iou_threshold: float = 0.5,
  max_boxes: int = 300,
  max_candidates: int = 30_000,
  multi_label: bool = True,
  agnostic: bool = False,
) -> types.Detections:
  """Decides which boxes are objects, of which class: pure, of a batch, without gradient.

  The score of a box and a class is the product of both probabilities.

  Args:
    boxes: `[batch, anchors, 4]`, corners in pixels.
    objectness: probabilities `[batch, anchors]`.
    classes: probabilities `[batch, anchors, classes]`.
    score_threshold: only scores above it count, of boxes whose objectness is above it.
    iou_threshold: a box leaves that overlaps a better one of its class by more.
    max_boxes: objects of an image.
    max_candidates: pairs of a box and a class that compete.
    multi_label: a box competes with every class; otherwise with its best one.
    agnostic: boxes of different classes suppress each other too.
  """

  def of_image(boxes: jax.Array, objectness: jax.Array, classes: jax.Array) -> types.Detections:
    scores = classes * objectness[:, None]
    counts = (objectness > score_threshold)[:, None]
    if not multi_label:
      counts &= jnp.argmax(scores, axis=-1)[:, None] == jnp.arange(scores.shape[-1])
    scores = jnp.where(counts, scores, -jnp.inf)
    best, rows, labels = decoding.best_pairs(scores, max_candidates)
    kept = suppression.non_maximum_suppression(
      boxes[rows],
      best,
      labels=None if agnostic else labels,
      iou_threshold=iou_threshold,
      max_boxes=max_boxes,
      score_threshold=score_threshold,
    )
    found = decoding.chosen_detections(boxes[rows], best, labels, kept)
    return found.replace(anchors=jnp.where(kept >= 0, rows[kept], -1))

  return parallel.map_batch(of_image, *lax.stop_gradient((boxes, objectness, classes)))


def decode_yolo(
  outputs: Mapping[str, jax.Array], grid: anchors_lib.AnchorGrid, **options: float | bool
) -> types.Detections:
  """The objects that YOLOv5's head found.

  Args:
    outputs: of `YoloHead`.
    grid: the anchors.
    **options: of `find_objects`.
  """
  boxes = box_ops.from_center_size(decode_boxes(outputs['box_logits'], grid))
  probabilities = nn.sigmoid(outputs['objectness']), nn.sigmoid(outputs['logits'])
  return find_objects(boxes, *probabilities, **options)
