"""Region proposal network: where objects are, of whatever class.

Source: Faster R-CNN, Ren et al. 2015 (arXiv 1506.01497), section 3.1, on a pyramid (Lin et al.
2017, arXiv 1612.03144, section 4.1), as in mmdetection.
"""

from collections.abc import Mapping, Sequence

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.geometry import encoding, suppression
from crossattn_jax.heads.detection import anchors as anchors_lib
from crossattn_jax.heads.detection import retinanet
from crossattn_jax.layers import module

Boxes = tuple[jax.Array, jax.Array]  # With their scores.


class RegionProposalHead(module.Module):
  """A convolution, and the objectness and the box of every anchor, shared by all levels.

  Attributes:
    anchors_per_cell: of every level.
    channels: of the convolution.
  """

  anchors_per_cell: int
  channels: int = 256

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array]) -> dict[str, jax.Array]:
    """Judges and places the anchors of a pyramid.

    Args:
      maps: of the levels, `[batch, height, width, channels]`, finest first.

    Returns:
      'objectness' `[batch, anchors]`, logits, and 'anchor_deltas' `[batch, anchors, 4]`, the boxes
      relative to their anchors, in at least float32; the levels' anchors one after another.
    """
    anchors = self.anchors_per_cell
    conv = retinanet.convolution(self.channels, 3, 'conv', **self.types)
    objectness = retinanet.convolution(anchors, 1, 'objectness', **self.types)
    deltas = retinanet.convolution(4 * anchors, 1, 'regressor', **self.types)
    maps = [
      parallel.constrain(nn.relu(conv(x)), 'batch', 'height', 'width', 'channels') for x in maps
    ]
    return {
      'objectness': retinanet.rows_of_anchors([objectness(x) for x in maps], 1)[..., 0],
      'anchor_deltas': retinanet.rows_of_anchors([deltas(x) for x in maps], 4),
    }


def propose(
  outputs: Mapping[str, jax.Array],
  grid: anchors_lib.AnchorGrid,
  image_size: jax.Array,
  *,
  max_per_level: int,
  max_boxes: int = 1000,
  iou_threshold: float = 0.7,
  min_size: float = 0.0,
  stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
  is_candidate: jax.Array | bool = True,
) -> Boxes:
  """The best boxes of a region proposal head: what a detector's second stage looks at.

  Args:
    outputs: of a `RegionProposalHead`.
    grid: the anchors.
    image_size: (height, width) of the images in pixels, `[batch, 2]`: boxes are clipped to it.
    max_per_level: boxes of a level that compete; mmdetection's configurations take 2000 in training
      and 1000 otherwise.
    max_boxes: proposals of an image.
    iou_threshold: boxes of a level that overlap a better one of it by more leave.
    min_size: boxes must be wider and higher, in pixels.
    stds: of the encoding of boxes.
    is_candidate: `[batch, anchors]`, False for anchors that make no proposals: those of cells in
      the padding (`grid.valid`), which no loss has seen.

  Returns:
    Boxes `[batch, max_boxes, 4]`, best first, 0 where there are fewer; their scores
    `[batch, max_boxes]`, probabilities, -1 where there are fewer. Without gradient.
  """

  def of_image(
    objectness: jax.Array, deltas: jax.Array, size: jax.Array, is_candidate: jax.Array
  ) -> Boxes:
    corners = grid.corners(deltas.dtype)
    probabilities = jnp.where(is_candidate, nn.sigmoid(objectness), -jnp.inf)
    levels = []
    for level, rows in enumerate(grid.levels):
      scores = probabilities[rows]
      best, chosen = lax.top_k(scores, min(max_per_level, len(scores)))
      boxes = encoding.decode(
        corners[rows][chosen],
        deltas[rows][chosen],
        stds=stds,
        image_size=size,
        inclusive=grid.anchors.boxes.inclusive,
      )
      levels.append((boxes, best, jnp.full(best.shape, level)))
    boxes, scores, labels = map(jnp.concatenate, zip(*levels, strict=True))
    large = jnp.all(boxes[:, 2:] - boxes[:, :2] > min_size, axis=-1)
    kept = suppression.non_maximum_suppression(
      boxes,
      jnp.where(large, scores, -jnp.inf),
      labels=labels,
      iou_threshold=iou_threshold,
      max_boxes=max_boxes,
    )
    found = kept >= 0
    return jnp.where(found[:, None], boxes[kept], 0), jnp.where(found, scores[kept], -1)

  objectness, deltas = lax.stop_gradient((outputs['objectness'], outputs['anchor_deltas']))
  is_candidate = jnp.broadcast_to(is_candidate, objectness.shape)
  return parallel.map_batch(of_image, objectness, deltas, jnp.asarray(image_size), is_candidate)
