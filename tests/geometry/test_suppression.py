import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.geometry import suppression


def plain_iou(box, other):
  def area(box):
    return max(box[2] - box[0], np.float32(0)) * max(box[3] - box[1], np.float32(0))

  shared = area([*np.maximum(box[:2], other[:2]), *np.minimum(box[2:], other[2:])])
  return shared / max(area(box) + area(other) - shared, np.float32(1e-6))


def plain(boxes, scores, iou_threshold, max_boxes, score_threshold=-np.inf, labels=None):
  """The sequential definition: box after box in the order of scores, equal ones by index."""
  labels = np.zeros(len(boxes)) if labels is None else labels
  kept = []
  for box in sorted(range(len(boxes)), key=lambda index: -scores[index]):
    if scores[box] > score_threshold and not any(
      labels[box] == labels[other] and plain_iou(boxes[box], boxes[other]) > iou_threshold
      for other in kept
    ):
      kept.append(box)
  return np.array((kept + [-1] * max_boxes)[:max_boxes])


def scene(count, size, seed, *, whole):
  """Boxes and scores; on whole pixels, with many overlaps, scores and boxes that are equal."""
  rng = np.random.RandomState(seed)
  low, sides = rng.uniform(0, size, (count, 2)), rng.uniform(0, 40, (count, 2))
  boxes, scores = np.concatenate([low, low + sides], axis=-1), rng.uniform(size=count)
  if whole:
    boxes, scores = np.round(boxes / 8) * 8, np.round(scores, 1)
  return boxes.astype(np.float32), scores.astype(np.float32)


@functools.cache
def compiled(**options):
  return jax.jit(functools.partial(suppression.non_maximum_suppression, **options))


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('whole', [True, False], ids=['ties', 'no ties'])
@pytest.mark.parametrize(
  'options',
  [
    {'iou_threshold': 0.5, 'max_boxes': 300},
    {'iou_threshold': 0.5, 'max_boxes': 40},  # Full before the last block.
    {'iou_threshold': 0.2, 'max_boxes': 300, 'score_threshold': 0.3},
    {'iou_threshold': 0.0, 'max_boxes': 300},
  ],
  ids=str,
)
def test_survivors_are_those_of_the_sequential_definition(options, whole, seed):
  boxes, scores = scene(300, 150, seed, whole=whole)
  result = compiled(**options)(boxes, scores)
  np.testing.assert_array_equal(result, plain(boxes, scores, **options))


@pytest.mark.parametrize('whole', [True, False], ids=['ties', 'no ties'])
def test_classes_do_not_suppress_each_other(whole):
  options = {'iou_threshold': 0.4, 'max_boxes': 300}
  boxes, scores = scene(300, 80, 0, whole=whole)
  labels = np.random.RandomState(1).randint(0, 3, 300)
  result = compiled(**options)(boxes, scores, labels=labels)
  np.testing.assert_array_equal(result, plain(boxes, scores, labels=labels, **options))


@pytest.mark.parametrize('shift', [1, 3, 7])
def test_chains_are_settled(shift):
  """Every box overlaps the next ones: whether it stays depends on all before it."""
  low = np.arange(300, dtype=np.float32)[:, None] * [shift, 0]
  boxes = np.concatenate([low, low + 10], axis=-1).astype(np.float32)
  scores = np.linspace(1, 0, 300, dtype=np.float32)
  options = {'iou_threshold': 0.1, 'max_boxes': 300}
  np.testing.assert_array_equal(compiled(**options)(boxes, scores), plain(boxes, scores, **options))


def test_images_of_a_batch_are_independent_and_padding_counts_for_nothing():
  options = {'iou_threshold': 0.5, 'max_boxes': 300}
  scenes = [scene(300, size, 5, whole=True) for size in (20, 150, 400)]
  boxes, scores = map(np.stack, zip(*scenes, strict=True))
  counts = [300, 130, 0]
  padded = np.where(np.arange(300) < np.array(counts)[:, None], scores, -np.inf)
  boxes[1, 130:] = np.nan
  run = functools.partial(suppression.non_maximum_suppression, **options)
  result = jax.jit(jax.vmap(run))(boxes, padded.astype(np.float32))
  for row, box, score, count in zip(result, boxes, scores, counts, strict=True):
    np.testing.assert_array_equal(row, plain(box[:count], score[:count], **options))


def test_boxes_without_area_stay_and_suppress_nothing():
  boxes = np.float32([[3, 3, 3, 3], [3, 3, 3, 3], [0, 0, 6, 6], [0, 0, 6, 6], [5, 5, 2, 2]])
  scores = np.float32([0.9, 0.8, 0.7, 0.6, 0.5])
  kept = compiled(iou_threshold=0.5, max_boxes=5)(boxes, scores)
  np.testing.assert_array_equal(kept, [0, 1, 2, 4, -1])


def test_an_overlap_of_the_threshold_itself_stays():
  boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 6]])
  kept = compiled(iou_threshold=0.5, max_boxes=3)(boxes, np.float32([0.5, 0.5, 0.5]))
  np.testing.assert_array_equal(kept, [0, 1, -1])  # 0.6 and, with the second, 0.83 are more.


def test_bfloat16_boxes_overlap_in_float32():
  boxes, scores = scene(100, 60, 0, whole=True)  # Exact in bfloat16; their areas are not.
  options = {'iou_threshold': 0.4, 'max_boxes': 100}
  kept = compiled(**options)(jnp.bfloat16(boxes), scores)
  np.testing.assert_array_equal(kept, plain(boxes, scores, **options))


@pytest.mark.torch
@pytest.mark.parametrize('whole', [True, False], ids=['ties', 'no ties'])
def test_torchvision_agrees(whole):
  ops = pytest.importorskip('torchvision').ops
  import torch

  boxes, scores = scene(1000, 300, 0, whole=whole)
  theirs = ops.nms(torch.tensor(boxes), torch.tensor(scores), 0.5).numpy()
  kept = compiled(iou_threshold=0.5, max_boxes=1000)(boxes, scores)
  np.testing.assert_array_equal(kept, np.pad(theirs, (0, 1000 - len(theirs)), constant_values=-1))
