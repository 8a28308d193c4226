"""Regions of the second stage: from which it learns, and the objects that it makes of them.

Source: Faster R-CNN, Ren et al. 2015 (arXiv 1506.01497); numbers and order of steps as in
mmdetection. A region is a box, most often a proposal of the first stage; one without area is
padding. Nothing here has a gradient with respect to boxes.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.geometry import assignment, encoding, suppression
from crossattn_jax.geometry import boxes as box_ops
from crossattn_jax.heads.detection import decoding, types

# Of offsets from a region, which are small: divided by these, their variance is near 1.
STDS = (0.1, 0.1, 0.2, 0.2)
_HALF = {'positive': 0.5, 'negative': 0.5, 'min_positive': 0.5}


def assign(
  regions: jax.Array, truths: jax.Array, is_truth: jax.Array, **thresholds: float
) -> tuple[jax.Array, jax.Array]:
  """Assigns objects to the regions of one image, and appends the objects' own boxes to them.

  Args:
    regions: `[count, 4]`, corners.
    truths: `[truths, 4]`.
    is_truth: `[truths]`, False in padding.
    **thresholds: of `assignment.max_iou_assignment`; its overlaps are 0.5 by default.

  Returns:
    Regions `[count + truths, 4]` and their assignment `[count + truths]`.
  """
  overlaps = box_ops.iou(truths[:, None], regions)
  is_candidate = box_ops.area(regions) > 0
  assigned, _ = assignment.max_iou_assignment(
    overlaps, is_truth, is_candidate=is_candidate, **{**_HALF, **thresholds}
  )
  return assignment.add_truths(regions, assigned, truths, is_truth)


def sample(
  key: jax.Array,
  regions: jax.Array,
  truths: types.Truths,
  *,
  number: int = 512,
  positive_fraction: float = 0.25,
  **thresholds: float,
) -> tuple[jax.Array, jax.Array]:
  """Draws the regions from which the second stage learns.

  Args:
    key: of the batch. An image's draw depends on its place in the batch, not on other images.
    regions: `[batch, count, 4]`, proposals.
    truths: of the batch; their boxes are regions too.
    number: of regions of an image.
    positive_fraction: at most `int(number * positive_fraction)` regions have an object.
    **thresholds: of `assign`.

  Returns:
    Regions `[batch, number, 4]` and the truth of each, `[batch, number]`: an index, `BACKGROUND`,
    or `IGNORED` in padding. Those with a truth come first, padding last.
  """

  def of_image(key, regions, truths, labels):
    regions, assigned = assign(regions, truths, labels >= 0, **thresholds)
    indices, drawn = assignment.sample(key, assigned, number, positive_fraction)
    return (
      jnp.where(drawn[:, None], regions[indices], 0),
      jnp.where(drawn, assigned[indices], assignment.IGNORED),
    )

  keys = jax.random.split(key, len(regions))
  regions, boxes = lax.stop_gradient((regions, truths.boxes.astype(regions.dtype)))
  return parallel.map_batch(of_image, keys, regions, boxes, truths.labels)


def decode(
  logits: jax.Array,
  deltas: jax.Array,
  regions: jax.Array,
  image_size: jax.Array,
  *,
  score_threshold: float = 0.05,
  iou_threshold: float = 0.5,
  max_boxes: int = 100,
  stds: Sequence[float] = STDS,
) -> types.Detections:
  """Makes detections of what the box head says of regions.

  Args:
    logits: `[batch, count, classes + 1]`, the last one the background's.
    deltas: `[batch, count, classes, 4]`, offsets from the regions.
    regions: `[batch, count, 4]`.
    image_size: `[batch, 2]`, height and width of the images without padding: boxes end there.
    score_threshold: least probability of a class.
    iou_threshold: of a class, a box leaves that overlaps a better one by more than this.
    max_boxes: detections of an image.
    stds: of the offsets.

  Returns:
    The detections, without masks.
  """
  classes = deltas.shape[-2]
  # Probabilities add up to 1, so that few classes of a region can be above the threshold: sorting
  # 20 of 80 candidates leaves none out.
  most = min(classes, int(1 / score_threshold)) if score_threshold > 0 else classes

  def of_image(logits, deltas, regions, size):
    scores, labels = lax.top_k(nn.softmax(logits)[:, :-1], most)
    scores = jnp.where(box_ops.area(regions)[:, None] > 0, scores, -jnp.inf)
    deltas = jnp.take_along_axis(deltas, labels[..., None], axis=1)
    boxes = encoding.decode(regions[:, None], deltas, stds=stds, image_size=size)
    boxes, scores, labels = boxes.reshape(-1, 4), scores.reshape(-1), labels.reshape(-1)
    kept = suppression.non_maximum_suppression(
      boxes,
      scores,
      labels=labels,
      iou_threshold=iou_threshold,
      score_threshold=score_threshold,
      max_boxes=max_boxes,
    )
    return decoding.chosen_detections(boxes, scores, labels, kept)

  logits, deltas, regions = lax.stop_gradient((logits, deltas, regions))
  return parallel.map_batch(of_image, logits, deltas, regions, jnp.asarray(image_size))
