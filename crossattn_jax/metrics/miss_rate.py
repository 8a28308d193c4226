"""KAIST's log-average miss rates of pedestrian detectors.

Source: Hwang et al. 2015 (CVPR, multispectral pedestrian detection), after Dollár et al. 2012.
"""

from collections.abc import Mapping
import dataclasses
from typing import Literal

from hotcoco import mask as rle_lib
import numpy as np

from crossattn_jax.metrics import coco

# False positives per image at which recall is read.
FALSE_POSITIVES = np.array([0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0])
_IOU_THRESHOLD = 0.5
_MAX_DETECTIONS = 1000
_FRAME = (5, 5, 635, 507)  # Corners: who leaves it need not be found.


@dataclasses.dataclass(frozen=True)
class Setting:
  """Which pedestrians must be found; whoever finds others is neither right nor wrong.

  Attributes:
    heights: the least and the most, in pixels.
    occlusions: the grades, of 0 (none), 1 (partial) and 2 (heavy).
    images: which of them are looked at.
  """

  heights: tuple[float, float]
  occlusions: tuple[int, ...]
  images: Literal['all', 'day', 'night'] = 'all'


SETTINGS: Mapping[str, Setting] = {
  'all': Setting((55, np.inf), (0, 1)),
  'day': Setting((55, np.inf), (0, 1), 'day'),
  'night': Setting((55, np.inf), (0, 1), 'night'),
  'near': Setting((115, np.inf), (0,)),
  'medium': Setting((45, 115), (0,)),
  'far': Setting((1, 45), (0,)),
  'none': Setting((1, np.inf), (0,)),
  'partial': Setting((1, np.inf), (1,)),
  'heavy': Setting((1, np.inf), (2,)),
}


@dataclasses.dataclass(frozen=True)
class Pedestrians:
  """The annotations of a set of images.

  Attributes:
    image: index of the image of each, int `[n]`.
    box: corners in pixels of KAIST's 640 x 512 images, `[n, 4]`.
    occlusion: 0 none, 1 partial, 2 heavy, `[n]`.
    ignored: whether nobody needs to find it: groups, riders and whom annotators doubted, `[n]`.
    height: in pixels, where annotated apart from the boxes, `[n]`.
  """

  image: np.ndarray
  box: np.ndarray
  occlusion: np.ndarray
  ignored: np.ndarray
  height: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class MissRate:
  """The result in one setting.

  Attributes:
    rate: the log-average miss rate, a fraction; NaN where nobody must be found.
    recall: at `FALSE_POSITIVES`, `[9]`.
    false_positives: per image, of the most certain detections, of two, of three ..., `[n]`.
    misses: the share of pedestrians that these have not found, `[n]`.
  """

  rate: float
  recall: np.ndarray
  false_positives: np.ndarray
  misses: np.ndarray


def miss_rates(
  truths: Pedestrians, detections: coco.Instances, day: np.ndarray, official: bool = True
) -> dict[str, MissRate]:
  """The miss rates in all `SETTINGS`.

  Published numbers come from a script with four faults, which `official` repeats: overlaps belong
  to the wrong detections unless each image's are given by descending score; who is missed in an
  image without detections is not counted; the very first annotation is never found; and where the
  first detection is wrong and the images are few, recall at the lowest rates is the final one.

  Args:
    truths: who is there.
    detections: what was found, all taken for pedestrians.
    day: of every image, whether it was taken by day, bool `[images]`.
    official: whether results are to be compared with published ones.

  Returns:
    The results by the names of the `SETTINGS`.
  """
  return {
    name: _evaluate(truths, detections, np.asarray(day, bool), setting, official)
    for name, setting in SETTINGS.items()
  }


def _evaluate(
  truths: Pedestrians,
  detections: coco.Instances,
  day: np.ndarray,
  setting: Setting,
  official: bool,
) -> MissRate:
  images = {'all': np.full(len(day), True), 'day': day, 'night': ~day}[setting.images]
  ignored = _ignored(truths, setting)
  boxes, others = coco.to_xywh(detections.box), coco.to_xywh(truths.box)
  right, wrong = np.zeros((2, len(boxes)), bool)
  for image in np.flatnonzero(images):
    found = np.flatnonzero(detections.image == image)
    order = np.argsort(-detections.score[found], kind='stable')
    found = found[order]
    there = np.flatnonzero(truths.image == image)
    there = there[np.argsort(ignored[there], kind='stable')]
    overlaps = rle_lib.iou(boxes[found], others[there], ignored[there].tolist())
    overlaps = np.reshape(overlaps, (len(found), len(there)))
    if official:
      overlaps = overlaps[order]  # They were in this order already.
    found = found[:_MAX_DETECTIONS]
    matches = _match(overlaps[:_MAX_DETECTIONS], ignored[there])
    truth = np.append(there, -1)[matches]
    hit = truth > 0 if official else truth >= 0  # To the script, 0 means nobody.
    counts = ~np.append(ignored, False)[truth]
    right[found], wrong[found] = hit & counts, ~hit & counts

  order = np.lexsort((detections.image, -np.asarray(detections.score)))
  order = order[(right | wrong)[order]]
  false_positives = np.cumsum(wrong[order]) / max(np.sum(images), 1)
  required = ~ignored & images[truths.image]
  counted = required & np.isin(truths.image, detections.image) if official else required
  recalls = np.cumsum(right[order]) / max(np.sum(counted), 1)
  recall = _read(false_positives, recalls, official)
  rate = np.exp(np.mean(np.log(1 - recall + 1e-5))) if required.any() else np.nan
  return MissRate(float(rate), recall, false_positives, 1 - recalls)


def _ignored(truths: Pedestrians, setting: Setting) -> np.ndarray:
  """Whom nobody needs to find in a setting, bool `[n]`."""
  box = np.asarray(truths.box)
  height = box[:, 3] - box[:, 1] if truths.height is None else truths.height
  low, high = setting.heights
  return (
    np.asarray(truths.ignored, bool)
    | (height < low)
    | (height > high)
    | ~np.isin(truths.occlusion, setting.occlusions)
    | (box[:, :2] < _FRAME[:2]).any(axis=1)
    | (box[:, 2:] > _FRAME[2:]).any(axis=1)
  )


def _match(overlaps: np.ndarray, ignored: np.ndarray) -> np.ndarray:
  """The truth of each detection, -1 for none; any number may share an ignored one.

  Args:
    overlaps: `[detections, truths]`, detections by descending score, ignored truths last.
    ignored: `[truths]`.
  """
  matches = np.full(len(overlaps), -1)
  free = ~ignored
  for index, row in enumerate(overlaps):
    candidates = np.where(free, row, -1)
    if candidates.max(initial=-1) >= _IOU_THRESHOLD:
      matches[index] = candidates.argmax()
      free[matches[index]] = False
    elif (absorbing := ignored & (row >= _IOU_THRESHOLD)).any():
      matches[index] = absorbing.argmax()
  return matches


def _read(false_positives: np.ndarray, recalls: np.ndarray, official: bool) -> np.ndarray:
  """Recalls at the last detection with no more than `FALSE_POSITIVES`, `[9]`."""
  last = np.searchsorted(false_positives, FALSE_POSITIVES, side='right') - 1
  before = recalls[-1] if official and recalls.size else 0.0
  return np.append(recalls, before)[last]
