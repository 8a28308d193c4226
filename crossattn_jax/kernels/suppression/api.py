"""The public function of non-maximum suppression."""

import jax

from crossattn_jax import parallel
from crossattn_jax.geometry import suppression


def non_maximum_suppression(
  boxes: jax.Array,
  scores: jax.Array,
  labels: jax.Array,
  *,
  iou_threshold: float,
  max_boxes: int,
  score_threshold: float = float('-inf'),
) -> jax.Array:
  """Greedy non-maximum suppression of every image of a batch, within its classes.

  `geometry.suppression.non_maximum_suppression` is its definition. Every device works on its own
  images: the rounds of a loop over all images would each wait for all devices.

  Args:
    boxes: `[batch, count, 4]`, corners.
    scores: `[batch, count]`, -inf in padding.
    labels: `[batch, count]` integers: boxes of different labels do not suppress each other.
    iou_threshold: a box leaves that overlaps a better survivor by more than this.
    max_boxes: that survive, of every image.
    score_threshold: only scores above it count.

  Returns:
    Indices of the survivors, `[batch, max_boxes]` int32, best first; -1 where there are fewer.
  """

  def of_image(boxes: jax.Array, scores: jax.Array, labels: jax.Array) -> jax.Array:
    return suppression.non_maximum_suppression(
      boxes,
      scores,
      labels=labels,
      iou_threshold=iou_threshold,
      max_boxes=max_boxes,
      score_threshold=score_threshold,
    )

  return parallel.map_batch(of_image, boxes, scores, labels)
