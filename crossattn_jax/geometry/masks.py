"""The part of an object's mask that lies in a box: what a mask head learns."""

import jax
from jax import lax
import jax.numpy as jnp

from crossattn_jax.geometry import boxes as box_ops
from crossattn_jax.geometry import roi_sampling

# Boxes whose masks are unpacked at once: those of whole images are large.
_AT_ONCE = 8


def mask_targets(masks: jax.Array, boxes: jax.Array, index: jax.Array, side: int) -> jax.Array:
  """The part of an object's mask that lies in a box, for the boxes of one image.

  Boxes are clipped to the image, masks resampled by RoIAlign (aligned, adaptive) and compared with
  a half (Mask R-CNN, He et al. 2017, arXiv 1703.06870, section 3.1). `jax.vmap` takes a batch.

  Args:
    masks: of the objects, bool `[objects, height, width]`, or uint8 `[objects, height, width / 8]`,
      eight pixels a byte, the leftmost one the highest bit (`numpy.packbits`).
    boxes: `[count, 4]`, corners in pixels.
    index: `[count]`, the object of every box; below 0 for none.
    side: of the result.

  Returns:
    bool `[count, side, side]`, False where there is no object.

  Examples:
    >>> masks = jnp.zeros((1, 8, 8), bool).at[0, :, :4].set(True)
    >>> boxes, index = jnp.array([[0.0, 0.0, 8.0, 8.0]]), jnp.array([0])
    >>> jax.eval_shape(lambda *x: mask_targets(*x, side=28), masks, boxes, index).shape
    (1, 28, 28)
  """
  masks, boxes = jnp.asarray(masks), lax.stop_gradient(jnp.asarray(boxes))
  packed = masks.dtype == jnp.uint8
  height, width = masks.shape[1], masks.shape[2] * (8 if packed else 1)
  boxes = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
  boxes = box_ops.clip(boxes, (height, width))

  def target(box_and_index):
    box, i = box_and_index
    mask = masks[jnp.maximum(i, 0)]
    if packed:
      bits = mask[..., None] >> jnp.arange(7, -1, -1, dtype=jnp.uint8) & 1
      mask = bits.reshape(height, width)
    rows, columns, samples = roi_sampling.matrices(box, (side, side), (height, width))
    with jax.default_matmul_precision('highest'):
      total = rows @ mask.astype(rows.dtype) @ columns.T
    return (total / samples >= 0.5) & (i >= 0)

  return lax.map(target, (boxes, index), batch_size=min(_AT_ONCE, max(len(boxes), 1)))
