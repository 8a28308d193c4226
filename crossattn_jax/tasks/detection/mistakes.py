"""Objects that were missed, and boxes where there is none of their class. On the host, in NumPy."""

from collections.abc import Sequence
import dataclasses

from hotcoco import mask as rle_lib
import numpy as np

from crossattn_jax.metrics import coco
from crossattn_jax.tasks import review

# Boxes that overlap by less are not of the same object.
_LEAST_OVERLAP = 0.5
# What a missed object was taken for, and what a false box is in truth.
NOTHING = 'nothing'


@dataclasses.dataclass(frozen=True)
class Matches:
  """Which boxes of an image are of which objects.

  Attributes:
    truth: of each box the object, -1 for none, int `[boxes]`.
    missed: objects that no box of their class is of, bool `[objects]`.
    false: boxes that are of no object of their class, bool `[boxes]`.
  """

  truth: np.ndarray
  missed: np.ndarray
  false: np.ndarray


def match(
  boxes: np.ndarray,
  labels: np.ndarray,
  true_boxes: np.ndarray,
  true_labels: np.ndarray,
  crowd: np.ndarray,
) -> Matches:
  """Pairs boxes and objects that overlap by half, those of one class first, then the nearest.

  Args:
    boxes: that were found, corners `[boxes, 4]`.
    labels: their classes.
    true_boxes: of the objects, `[objects, 4]`.
    true_labels: their classes.
    crowd: whether one stands for several, bool `[objects]`: it is never missed, and no box in it is
      false.
  """
  overlap = np.zeros((len(boxes), len(true_boxes)))
  if overlap.size:
    corners = coco.to_xywh(boxes), coco.to_xywh(true_boxes)
    overlap = np.asarray(rle_lib.iou(*corners, crowd.tolist())).reshape(overlap.shape)
  same = labels[:, None] == true_labels
  in_crowd = ((overlap >= _LEAST_OVERLAP) & crowd).any(axis=1)
  near = (overlap >= _LEAST_OVERLAP) & ~crowd
  rows, columns = np.nonzero(near)
  order = np.lexsort((-overlap[near], ~same[near]))
  truth, free = np.full(len(boxes), -1), np.ones(len(true_boxes), bool)
  for row, column in zip(rows[order], columns[order], strict=True):
    if truth[row] < 0 and free[column]:
      truth[row], free[column] = column, False
  right = (truth >= 0) & same[np.arange(len(boxes)), truth] if same.size else truth >= 0
  missed = ~crowd
  missed[truth[right]] = False
  return Matches(truth, missed, ~right & ~((truth < 0) & in_crowd))


def review_of(
  truths: coco.Instances, found: coco.Instances, index: np.ndarray, class_names: Sequence[str]
) -> review.Review:
  """Which classes are taken for which, and the images with the most missed and false boxes.

  Args:
    truths: what is there, `image` the place in `index`.
    found: what was found, where it scores enough.
    index: of the images, int `[images]`, among the evaluation examples.
    class_names: in the order of the labels.
  """
  nothing = len(class_names)
  counts = np.zeros((nothing + 1, nothing + 1), np.int64)
  wrong = np.zeros((len(index), 2), np.int64)
  # In the order of the images.
  parts = [
    np.split(order, np.searchsorted(image[order], np.arange(1, len(index))))
    for image in (found.image, truths.image)
    for order in [np.argsort(image, kind='stable')]
  ]
  for place, (boxes, objects) in enumerate(zip(*parts, strict=True)):
    labels, true_labels = found.label[boxes], truths.label[objects]
    matches = match(
      found.box[boxes], labels, truths.box[objects], true_labels, truths.crowd[objects]
    )
    matched = matches.truth >= 0
    np.add.at(counts, (true_labels[matches.truth[matched]], labels[matched]), 1)
    np.add.at(counts, (nothing, labels[matches.false & ~matched]), 1)
    unmatched = np.delete(np.arange(len(objects)), matches.truth[matched])
    np.add.at(counts, (true_labels[unmatched[~truths.crowd[objects][unmatched]]], nothing), 1)
    wrong[place] = matches.missed.sum(), matches.false.sum()
  names = (*class_names, NOTHING)
  return review.Review(
    review.Confusion(counts, names, 'boxes'),
    review.worst(index, wrong.sum(axis=1), lambda row: '{} missed, {} false'.format(*wrong[row])),
  )
