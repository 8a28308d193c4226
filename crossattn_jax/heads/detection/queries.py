"""What queries have found: the best pairs of a query and a class.

Source: Deformable DETR, Zhu et al. 2021 (arXiv 2010.04159), appendix A.4.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.geometry import boxes as box_ops
from crossattn_jax.heads.detection import types


def find_objects(
  logits: jax.Array, boxes: jax.Array, image_size: jax.Array, max_boxes: int = 100
) -> types.Detections:
  """The pairs of a query and a class that score highest; a query may be in several.

  Args:
    logits: `[batch, queries, classes]`.
    boxes: `[batch, queries, 4]`, centres and sizes as fractions of the image.
    image_size: (height, width) in pixels, `[batch, 2]`.
    max_boxes: at most, and at most as many as there are pairs.

  Returns:
    Detections, best first, in pixels of an image of that size.
  """
  batch, queries, classes = logits.shape
  scores = nn.sigmoid(logits).reshape(batch, -1)
  scores, pairs = jax.lax.top_k(scores, min(max_boxes, queries * classes))
  found = jnp.take_along_axis(boxes, (pairs // classes)[..., None], axis=1)
  corners = box_ops.denormalize(box_ops.from_center_size(found), image_size[:, None])
  return types.Detections(corners, scores, (pairs % classes).astype(jnp.int32))
