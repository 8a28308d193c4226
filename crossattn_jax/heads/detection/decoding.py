"""From what a detector's head says to objects: pure functions, static shapes, no gradient."""

from collections.abc import Mapping, Sequence

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.geometry import encoding, suppression
from crossattn_jax.heads.detection import anchors as anchors_lib
from crossattn_jax.heads.detection import types


def best_pairs(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The best pairs of a row and a class.

  The rows are sorted by their best class first: with 80 classes that leaves little to sort.

  Args:
    scores: `[rows, classes]`.
    count: of pairs; fewer where there are fewer.

  Returns:
    Scores, rows and classes, `[count]` each, best first; of equal scores the lower row first, of
    the same row the lower class.
  """
  classes = scores.shape[-1]
  # At least as many pairs are better than those of all rows that are left out.
  _, rows = lax.top_k(scores.max(axis=-1), min(count, len(scores)))
  rows = jnp.sort(rows)
  candidates = scores[rows].reshape(-1)
  best, pairs = lax.top_k(candidates, min(count, len(candidates)))
  return best, rows[pairs // classes], pairs % classes


def decode_retinanet(
  outputs: Mapping[str, jax.Array],
  grid: anchors_lib.AnchorGrid,
  image_size: jax.Array,
  *,
  score_threshold: float = 0.05,
  iou_threshold: float = 0.5,
  max_boxes: int = 100,
  max_per_level: int = 1000,
  stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> types.Detections:
  """The objects that RetinaNet found.

  Anchors of cells beyond an image do not count, as in training.

  Args:
    outputs: 'logits' `[batch, anchors, classes]` and 'deltas' `[batch, anchors, 4]`.
    grid: the anchors.
    image_size: (height, width) of the images in pixels, `[batch, 2]`: boxes are clipped to it.
    score_threshold: only probabilities above it count.
    iou_threshold: a box leaves that overlaps a better one of its class by more.
    max_boxes: objects of an image.
    max_per_level: pairs of an anchor and a class that compete, of every level of the pyramid.
    stds: of the encoding of boxes.
  """

  def of_image(
    logits: jax.Array, deltas: jax.Array, size: jax.Array, valid: jax.Array
  ) -> types.Detections:
    corners = grid.corners(deltas.dtype)
    # Losses do not see the anchors of cells in the padding: they may say anything.
    scores = jnp.where(valid[:, None], nn.sigmoid(logits), -jnp.inf)
    levels = []
    for rows in grid.levels:
      best, chosen, labels = best_pairs(scores[rows], max_per_level)
      boxes = encoding.decode(
        corners[rows][chosen],
        deltas[rows][chosen],
        stds=stds,
        image_size=size,
        inclusive=grid.anchors.boxes.inclusive,
      )
      levels.append((boxes, best, labels))
    boxes, scores, labels = map(jnp.concatenate, zip(*levels, strict=True))
    kept = suppression.non_maximum_suppression(
      boxes,
      scores,
      labels=labels,
      iou_threshold=iou_threshold,
      max_boxes=max_boxes,
      score_threshold=score_threshold,
    )
    return chosen_detections(boxes, scores, labels, kept)

  logits, deltas = lax.stop_gradient((outputs['logits'], outputs['deltas']))
  image_size = jnp.asarray(image_size)
  return parallel.map_batch(of_image, logits, deltas, image_size, grid.valid(image_size))


def chosen_detections(
  boxes: jax.Array, scores: jax.Array, labels: jax.Array, kept: jax.Array
) -> types.Detections:
  """The rows `kept` `[max_boxes]`, -1 for none, of an image's boxes, scores and labels."""
  found = kept >= 0
  return types.Detections(
    boxes=jnp.where(found[:, None], boxes[kept], 0),
    scores=jnp.where(found, scores[kept], 0),
    labels=jnp.where(found, labels[kept], -1),
  )
