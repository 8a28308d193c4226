"""Average precision of boxes as YOLOv5 reports it, and with it most papers of RGB-T detection.

Against COCO's (`metrics.coco`): a detection may only be the object that it overlaps most, an
overlap equal to the threshold is not enough, and precision is interpolated linearly and integrated.
"""

from collections.abc import Mapping, Sequence
import dataclasses

from hotcoco import mask as rle_lib
import numpy as np

from crossattn_jax.metrics import coco

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_CONFIDENCES = np.linspace(0, 1, 1000)
_RECALLS = np.linspace(0, 1, 101)
_TINY = 1e-16
# Of all classes, and with '/CLASS' of each.
NAMES = ('map50', 'map75', 'map', 'precision', 'recall')
# Each in plain words; `*` is the name of a class.
WORDS = {
  'map50': 'average precision where an overlap (IoU) of 0.5 is right, mean over classes',
  'map75': 'average precision where an overlap (IoU) of 0.75 is right, mean over classes',
  'map': 'average precision, mean over overlaps 0.5 to 0.95 and classes',
  'precision': 'share of boxes that are right, at the score where F1 is best',
  'recall': 'share of objects that are found, at the score where F1 is best',
}
WORDS |= {f'{name}/*': f'{name} of {{}} alone' for name in NAMES}


@dataclasses.dataclass(frozen=True)
class AveragePrecision:
  """Results per class that occurs among the truths.

  Attributes:
    classes: the labels, ascending, int `[classes]`.
    ap: average precision, `[classes, thresholds]`; their mean over all is a paper's mAP.
    precision: at the first threshold and the confidence of the best mean F1, `[classes]`.
    recall: likewise.
    f1: likewise.
  """

  classes: np.ndarray
  ap: np.ndarray
  precision: np.ndarray
  recall: np.ndarray
  f1: np.ndarray


def evaluate(
  truths: coco.Instances, detections: coco.Instances, class_names: Sequence[str]
) -> dict[str, float]:
  """The numbers of a paper's table.

  Args:
    truths: what is there; crowds are left out, as YOLOv5's files leave out difficult objects.
    detections: what was found, with scores.
    class_names: in the order of the labels.

  Returns:
    The `NAMES`, means over the classes that occur among the truths, and 'NAME/CLASS' of each of
    these classes; empty where there is none.
  """
  if truths.crowd is not None:
    counted = ~truths.crowd
    truths = coco.Instances(truths.image[counted], truths.label[counted], truths.box[counted])
  right = match(truths, detections)
  found = average_precision(right, detections.score, detections.label, truths.label)
  if not len(found.classes):
    return {}
  columns = (found.ap[:, 0], found.ap[:, 5], found.ap.mean(axis=1), found.precision, found.recall)
  metrics = {name: float(column.mean()) for name, column in zip(NAMES, columns, strict=True)}
  for label, *values in zip(found.classes, *columns, strict=True):
    own = (f'{name}/{class_names[label]}' for name in NAMES)
    metrics |= dict(zip(own, map(float, values), strict=True))
  return metrics


def table(metrics: Mapping[str, float], class_names: Sequence[str]) -> str:
  """The results of `evaluate`, a line for all classes and one for each that occurs."""
  width = max(map(len, ('class', *class_names)))
  titles = {'precision': 'P', 'recall': 'R', 'map50': 'mAP50', 'map75': 'mAP75', 'map': 'mAP'}
  lines = [' ' + 'class'.ljust(width) + ''.join(f'{title:>8}' for title in titles.values())]
  for title, suffix in (('all', ''), *((name, f'/{name}') for name in class_names)):
    values = [metrics.get(f'{name}{suffix}') for name in titles]
    if None not in values:
      lines.append(' ' + title.ljust(width) + ''.join(f'{value:8.3f}' for value in values))
  return '\n'.join(lines)


def match(
  truths: coco.Instances, detections: coco.Instances, iou_thresholds: np.ndarray = IOU_THRESHOLDS
) -> np.ndarray:
  """Which detections are right.

  In the order of their scores, detections look at the truth of their image and class that they
  overlap most. The first to overlap it by more than the first threshold is right, at all thresholds
  that it exceeds.

  Args:
    truths: what is there; `crowd` and masks do not matter.
    detections: what was found, with scores.
    iou_thresholds: ascending, `[thresholds]`.

  Returns:
    Booleans `[detections, thresholds]`.
  """
  right = np.zeros((len(detections.box), len(iou_thresholds)), bool)
  boxes, others = coco.to_xywh(detections.box), coco.to_xywh(truths.box)
  groups = np.stack([detections.image, detections.label], axis=1)
  order = np.lexsort((-detections.score, detections.label, detections.image))
  starts = np.flatnonzero(np.diff(groups[order], axis=0).any(axis=1)) + 1
  for found in np.split(order, starts) if order.size else ():
    image, label = groups[found[0]]
    there = np.flatnonzero((truths.image == image) & (truths.label == label))
    if not there.size:
      continue
    overlaps = np.asarray(rle_lib.iou(boxes[found], others[there], [False] * len(there)))
    nearest, overlap = overlaps.argmax(axis=1), overlaps.max(axis=1)
    rows = np.flatnonzero(overlap > iou_thresholds[0])
    first = rows[np.unique(nearest[rows], return_index=True)[1]]
    right[found[first]] = overlap[first, None] > iou_thresholds
  return right


def average_precision(
  right: np.ndarray, scores: np.ndarray, labels: np.ndarray, true_labels: np.ndarray
) -> AveragePrecision:
  """Average precision, and precision and recall at the best confidence.

  Args:
    right: as `match` returns it, `[detections, thresholds]`.
    scores: `[detections]`, from 0 to 1.
    labels: classes of the detections, `[detections]`.
    true_labels: classes of all truths, `[truths]`.
  """
  order = np.argsort(-scores, kind='stable')
  right, scores, labels = right[order], scores[order], labels[order]
  classes, counts = np.unique(true_labels, return_counts=True)
  ap = np.zeros((len(classes), right.shape[1]))
  precision, recall = np.zeros((2, len(classes), len(_CONFIDENCES)))
  for index, (label, count) in enumerate(zip(classes, counts, strict=True)):
    of_class = labels == label
    if not of_class.any():
      continue
    hits = np.cumsum(right[of_class], axis=0)
    recalls = hits / (count + _TINY)
    precisions = hits / np.arange(1, len(hits) + 1)[:, None]
    ap[index] = [_area(*curve) for curve in zip(recalls.T, precisions.T, strict=True)]
    # Scores descend and np.interp wants them to ascend.
    falling = -_CONFIDENCES, -scores[of_class]
    recall[index] = np.interp(*falling, recalls[:, 0], left=0)
    precision[index] = np.interp(*falling, precisions[:, 0], left=1)
  f1 = 2 * precision * recall / (precision + recall + _TINY)
  best = f1.mean(axis=0).argmax() if len(classes) else 0
  return AveragePrecision(classes, ap, precision[:, best], recall[:, best], f1[:, best])


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
  """The area under the envelope of a curve, by trapezoids between 101 recalls."""
  recall = np.concatenate([[0], recall, recall[-1:] + 0.01])
  precision = np.concatenate([[1], precision, [0]])
  envelope = np.maximum.accumulate(precision[::-1])[::-1]
  return np.trapezoid(np.interp(_RECALLS, recall, envelope), _RECALLS)
