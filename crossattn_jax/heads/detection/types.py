"""What detectors are told and what they say: padded arrays of objects."""

from flax import struct
import jax


@struct.dataclass
class Truths:
  """The objects of a batch of images. No result depends on the padding.

  Attributes:
    boxes: `[batch, max_boxes, 4]`, corners in pixels of the network's input.
    labels: `[batch, max_boxes]` int32, -1 in padding.
    masks: `[batch, max_boxes, height, width / 8]` uint8, eight pixels a byte, the leftmost one the
      highest bit (`numpy.packbits`), at the size of the network's input; None for boxes alone.
  """

  boxes: jax.Array
  labels: jax.Array
  masks: jax.Array | None = None


@struct.dataclass
class Detections:
  """The objects that were found in a batch of images, best first.

  Attributes:
    boxes: `[batch, count, 4]`, corners in pixels of the network's input.
    scores: `[batch, count]`, 0 in padding.
    labels: `[batch, count]` int32, -1 in padding.
    masks: `[batch, count, side, side]`, the probability of every cell of a box that it belongs to
      the object; None for boxes alone.
    anchors: `[batch, count]` int32, the anchor of the grid that each is of, -1 in padding; None
      where heads do not say.
  """

  boxes: jax.Array
  scores: jax.Array
  labels: jax.Array
  masks: jax.Array | None = None
  anchors: jax.Array | None = None
