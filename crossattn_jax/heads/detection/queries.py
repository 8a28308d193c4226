"""What queries have found: the best pairs of a query and a class.

Source: Deformable DETR, Zhu et al. 2021 (arXiv 2010.04159), appendix A.4.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
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

  Examples:
    >>> logits = jnp.array([[[2.0, -3.0], [0.0, 1.0]]])
    >>> boxes = jnp.array([[[0.5, 0.5, 0.2, 0.2], [0.25, 0.5, 0.5, 1.0]]])
    >>> size = jnp.array([[100, 200]])
    >>> found = jax.jit(lambda *x: find_objects(*x, max_boxes=2))(logits, boxes, size)
    >>> found.labels.tolist(), found.boxes[0, 1].tolist()
    ([[0, 1]], [0.0, 0.0, 100.0, 100.0])
  """
  classes = logits.shape[-1]

  def of_image(
    logits: jax.Array, boxes: jax.Array, image_size: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    scores, pairs = jax.lax.top_k(nn.sigmoid(logits).reshape(-1), min(max_boxes, logits.size))
    query, label = jnp.divmod(pairs, classes)
    corners = box_ops.from_center_size(boxes[query])
    return box_ops.denormalize(corners, image_size), scores, label.astype(jnp.int32)

  return types.Detections(*parallel.map_batch(of_image, logits, boxes, image_size))
