"""Non-maximum suppression: of boxes that overlap much, the best one stays.

The greedy algorithm takes the box of the highest score, drops all others of its class that overlap
it by more than a threshold, and goes on with the best box left. Here a block of boxes at a time, in
the order of scores: those which an earlier block's survivors suppress leave; then the block is
settled by a fixed point, reached in as many rounds as its longest chain of suppressions is long.
The last block is the one that fills the result, so thousands of weak candidates cost nothing.
"""

import jax
from jax import lax
import jax.numpy as jnp

from crossattn_jax.geometry import boxes as box_ops

BLOCK = 128  # Boxes settled together: a tile's width on TPUs.


def _settle(suppresses: jax.Array, candidate: jax.Array) -> jax.Array:
  """Greedy survivors of a block: of `candidate` `[block]`, those whom no survivor suppresses.

  `suppresses[i, j]`: i is better than j and overlaps it. A box's fate depends on better boxes only,
  so every round settles at least the best box that was not settled yet.
  """

  def changes(state):
    survives, before = state
    return jnp.any(survives != before)

  def step(state):
    survives, _ = state
    suppressed = jnp.any(suppresses & survives[:, None], axis=0)
    return candidate & ~suppressed, survives

  survives, _ = lax.while_loop(changes, step, step((candidate, candidate)))
  return survives


def non_maximum_suppression(
  boxes: jax.Array,
  scores: jax.Array,
  *,
  iou_threshold: float,
  max_boxes: int,
  score_threshold: float = float('-inf'),
  labels: jax.Array | None = None,
) -> jax.Array:
  """Greedy non-maximum suppression of the boxes of one image.

  Of equal scores, the box with the lower index is the better one. Overlaps are computed in at least
  float32. `jax.vmap` makes it one of a batch.

  Args:
    boxes: `[count, 4]`, corners.
    scores: `[count]`.
    iou_threshold: a box leaves that overlaps a better survivor by more than this.
    max_boxes: that survive; the others, of lower scores, are left out.
    score_threshold: only scores above it count. Padding has a score of -inf.
    labels: `[count]` integers, 0 or more: boxes of different classes do not suppress each other.
      None for boxes of one class.

  Returns:
    Indices of the survivors, `[max_boxes]` int32, best first; -1 where there are fewer.

  Examples:
    >>> boxes = jnp.array([[0.0, 0.0, 9.0, 9.0], [1.0, 0.0, 9.0, 9.0], [20.0, 0.0, 30.0, 9.0]])
    >>> scores = jnp.array([0.8, 0.9, 0.7])
    >>> non_maximum_suppression(boxes, scores, iou_threshold=0.5, max_boxes=3).tolist()
    [1, 2, -1]
  """
  boxes, scores = lax.stop_gradient((boxes, scores))
  boxes = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
  labels = jnp.zeros(len(boxes), jnp.int32) if labels is None else labels
  block = min(BLOCK, len(boxes))
  counts = scores > score_threshold
  order = jnp.argsort(jnp.where(counts, scores, -jnp.inf), stable=True, descending=True)
  order = jnp.pad(order.astype(jnp.int32), (0, -len(boxes) % block))
  total = jnp.sum(counts)
  earlier = jnp.arange(block)[:, None] < jnp.arange(block)

  def unfinished(state):
    start, found, _ = state
    return (start < total) & (found < max_boxes)

  def settle_block(state):
    start, found, kept = state
    chosen = lax.dynamic_slice_in_dim(order, start, block)
    candidate = start + jnp.arange(block) < total

    def suppresses(better: jax.Array) -> jax.Array:
      overlap = box_ops.iou(boxes[better][:, None], boxes[chosen])
      return (overlap > iou_threshold) & (labels[better][:, None] == labels[chosen])

    candidate &= ~jnp.any(suppresses(kept) & (kept >= 0)[:, None], axis=0)
    survives = _settle(suppresses(chosen) & earlier, candidate)
    places = jnp.where(survives, found + jnp.cumsum(survives) - 1, max_boxes)
    kept = kept.at[places].set(chosen, mode='drop')
    return start + block, found + jnp.sum(survives), kept

  none = jnp.full(max_boxes, -1, jnp.int32)
  zero = jnp.zeros((), total.dtype)
  return lax.while_loop(unfinished, settle_block, (zero, zero, none))[-1]
