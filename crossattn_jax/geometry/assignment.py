"""Which boxes are responsible for which objects: by overlap, by a random draw, by lowest cost.

An assignment is `[boxes]` integers: the index of the object that a box is to find, `BACKGROUND` or
`IGNORED`. Objects ("truths") are padded: `is_truth` says which rows are real, and no result depends
on the others.
"""

import jax
from jax import lax
import jax.numpy as jnp
import optax

BACKGROUND = -1  # No object: a negative example.
IGNORED = -2  # No example at all.


def max_iou_assignment(
  overlaps: jax.Array,
  is_truth: jax.Array,
  *,
  positive: float,
  negative: float,
  min_positive: float = 0.0,
  low_quality: bool = True,
  all_best: bool = True,
  is_candidate: jax.Array | bool = True,
) -> tuple[jax.Array, jax.Array]:
  """Assigns to every box the object that it overlaps most, exactly as mmdetection does.

  Source: Faster R-CNN, Ren et al. 2015 (arXiv 1506.01497), section 3.1.2.

  In this order: a box that overlaps every object by less than `negative` is background; one that
  overlaps an object by at least `positive` is assigned to its best object, of equal ones the first;
  then every object takes the boxes that overlap it best, later objects from earlier ones, if the
  overlap is at least `min_positive`. All other boxes are ignored. Without objects all candidates
  are background.

  With `min_positive=0`, RetinaNet's, an object that overlaps no box takes all boxes which no later
  step assigns: keep boxes without area out of the objects.

  Args:
    overlaps: `[truths, boxes]`, IoU of every object with every box.
    is_truth: `[truths]`, False in padding.
    positive: least overlap of a positive example.
    negative: overlap below which a box is a negative example.
    min_positive: least overlap of an object's best boxes.
    low_quality: whether objects take their best boxes at all.
    all_best: whether an object takes all boxes of equal, best overlap, or the first of them.
    is_candidate: `[boxes]`, False for boxes that are to be ignored: anchors outside the image
      (`anchors.valid_anchors`), boxes in regions where nobody annotated single objects.

  Returns:
    The assignment `[boxes]`, int32, and the best overlap `[boxes]`, 0 where there is none.
  """
  index = jnp.arange(overlaps.shape[0], dtype=jnp.int32)[:, None]
  counts = is_truth[:, None] & jnp.broadcast_to(is_candidate, overlaps.shape[1:])
  # Computed once: a second computation could round otherwise, and no box would equal the best.
  overlaps = lax.optimization_barrier(jnp.where(counts, lax.stop_gradient(overlaps), -1))

  best = jnp.max(overlaps, axis=0)
  assigned = jnp.where(best < negative, BACKGROUND, IGNORED)
  assigned = jnp.where(best >= positive, jnp.argmax(overlaps, axis=0), assigned)
  if low_quality:
    best_of_truth = jnp.max(overlaps, axis=1, keepdims=True)
    is_best = overlaps == best_of_truth
    if not all_best:
      is_best = jnp.arange(overlaps.shape[1]) == jnp.argmax(overlaps, axis=1, keepdims=True)
    is_best &= counts & (best_of_truth >= min_positive)
    taken_by = jnp.max(jnp.where(is_best, index, -1), axis=0)
    assigned = jnp.where(taken_by >= 0, taken_by, assigned)
  assigned = jnp.where(is_candidate, assigned, IGNORED)
  return assigned.astype(jnp.int32), jnp.maximum(best, 0)


def add_truths(
  boxes: jax.Array, assigned: jax.Array, truths: jax.Array, is_truth: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Appends the objects' own boxes to proposals, each assigned to itself.

  So a detector's second stage has positive examples from the first step on.

  Args:
    boxes: `[boxes, 4]`.
    assigned: `[boxes]`, their assignment.
    truths: `[truths, 4]`.
    is_truth: `[truths]`, False in padding, which becomes `IGNORED`.

  Returns:
    `[boxes + truths, 4]` and `[boxes + truths]`.
  """
  itself = jnp.where(is_truth, jnp.arange(len(truths), dtype=assigned.dtype), IGNORED)
  return jnp.concatenate([boxes, truths]), jnp.concatenate([assigned, itself])


def sample(
  key: jax.Array | None, assigned: jax.Array, number: int, positive_fraction: float
) -> tuple[jax.Array, jax.Array]:
  """Draws positive and negative examples at random, every one with equal chance.

  Args:
    key: of the random draw; one per image, so that devices need not agree. None takes the boxes of
      the lowest indices, which is no draw at all, to compare with what another program takes.
    assigned: `[boxes]`, an assignment. `IGNORED` boxes are never drawn.
    number: of examples. Negative ones fill up what positive ones leave.
    positive_fraction: at most `int(number * positive_fraction)` examples are positive.

  Returns:
    Indices `[number]` of different boxes, positive examples first, int32; and `[number]` booleans,
    False where there were too few, which happens at the end. There the index is 0.
  """
  missing = max(number - len(assigned), 0)
  assigned = jnp.pad(assigned, (0, missing), constant_values=IGNORED)
  if key is None:
    draws = jnp.zeros(assigned.shape, jnp.float32)  # Of equal ones the first are the greatest.
  else:
    draws = jax.random.uniform(key, assigned.shape, jnp.float32)

  def draw(among: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    lots, indices = lax.top_k(jnp.where(among, draws, -1), most)
    return indices, lots >= 0

  positive, is_positive = draw(assigned >= 0, int(number * positive_fraction))
  negative, is_negative = draw(assigned == BACKGROUND, number)
  indices = jnp.concatenate([positive, negative])
  drawn = jnp.concatenate([is_positive, is_negative])
  first = jnp.argsort(~drawn, stable=True)[:number]
  return jnp.where(drawn[first], indices[first], 0), drawn[first]


def hungarian_matching(cost: jax.Array, is_truth: jax.Array) -> jax.Array:
  """Matches every object with a query of its own so that the sum of costs is least.

  Source: DETR, Carion et al. 2020 (arXiv 2005.12872), equation 1.

  Args:
    cost: `[queries, truths]`. What is not finite, as after a diverged step, counts as much as the
      largest finite cost.
    is_truth: `[truths]`, False in padding.

  Returns:
    The query of each object, `[truths]` int32, -1 in padding. Without gradient.

  Raises:
    ValueError: there are more rows for objects than queries.

  Examples:
    >>> cost, is_truth = jnp.array([[3.0, 1.0], [1.0, 2.0], [5.0, 5.0]]), jnp.array([True, True])
    >>> jax.jit(hungarian_matching)(cost, is_truth).tolist()
    [1, 0]
  """
  queries, truths = cost.shape
  if truths > queries:
    raise ValueError(
      f'{truths} objects, padding included, cannot have a query each of {queries}: pad to at most '
      f'{queries} objects, or use a model with more queries'
    )
  cost = lax.stop_gradient(cost).astype(jnp.promote_types(cost.dtype, jnp.float32))
  finite = jnp.isfinite(cost)
  cost = jnp.where(finite, cost, jnp.max(cost, initial=0, where=finite))
  # Columns of equal costs take what the others leave.
  cost = jnp.where(is_truth, cost, 0)
  query, truth = optax.assignment.hungarian_algorithm(cost)
  matched = jnp.zeros(truths, jnp.int32).at[truth].set(query.astype(jnp.int32))
  return jnp.where(is_truth, matched, -1)
