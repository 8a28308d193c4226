"""COCO's evaluation of boxes and masks, by hotcoco, and its table.

Source: Lin et al. 2014 (arXiv 1405.0312), and cocodataset.org/#detection-eval.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Literal

import hotcoco
from hotcoco import mask as rle_lib
import numpy as np

_OVERLAPS = {'0.50:0.95': slice(None), '0.50': slice(0, 1), '0.75': slice(5, 6)}
_AREAS = ('all', 'small', 'medium', 'large')
_COUNTS = (1, 10, 100)
# Every row of COCO's table: what is averaged, over which overlaps, of objects of which size, among
# how many detections per image and class.
_ROWS = {
  'ap': ('precision', '0.50:0.95', 'all', 100),
  'ap50': ('precision', '0.50', 'all', 100),
  'ap75': ('precision', '0.75', 'all', 100),
  'ap_small': ('precision', '0.50:0.95', 'small', 100),
  'ap_medium': ('precision', '0.50:0.95', 'medium', 100),
  'ap_large': ('precision', '0.50:0.95', 'large', 100),
  'ar1': ('recall', '0.50:0.95', 'all', 1),
  'ar10': ('recall', '0.50:0.95', 'all', 10),
  'ar100': ('recall', '0.50:0.95', 'all', 100),
  'ar_small': ('recall', '0.50:0.95', 'small', 100),
  'ar_medium': ('recall', '0.50:0.95', 'medium', 100),
  'ar_large': ('recall', '0.50:0.95', 'large', 100),
}
NAMES = tuple(_ROWS)
_OF_OBJECTS = {
  'small': 'objects of less than 32 x 32 pixels',
  'medium': 'objects between 32 x 32 and 96 x 96 pixels',
  'large': 'objects of more than 96 x 96 pixels',
}
# Each in plain words; `*` is the name of a class.
WORDS = {
  'ap': 'average precision (found and right), mean over overlaps 0.5 to 0.95 and classes',
  'ap50': 'average precision where an overlap (IoU) of 0.5 is right',
  'ap75': 'average precision where an overlap (IoU) of 0.75 is right',
  **{f'ap_{area}': f'average precision of {objects}' for area, objects in _OF_OBJECTS.items()},
  'ar1': 'share of objects found by one guess for each class of an image',
  'ar10': 'share of objects found by ten guesses for each class of an image',
  'ar100': 'share of objects found by a hundred guesses for each class of an image',
  **{f'ar_{area}': f'share found of {objects}' for area, objects in _OF_OBJECTS.items()},
  'ap/*': 'average precision of {} alone',
}


@dataclasses.dataclass(frozen=True)
class Instances:
  """Objects of a set of images: annotated ones, or found ones, which have scores.

  Attributes:
    image: index of the image of each, int `[n]`.
    label: class of each, int `[n]`.
    box: corners in pixels, `[n, 4]`.
    score: of each that was found, `[n]`; of equal scores the first counts first.
    area: of each that was annotated, in square pixels, `[n]`; the box's by default, without masks.
    crowd: whether an annotated one stands for a region full of objects, which nobody needs to find
      and anybody may, `[n]`; none by default.
    rle: masks as `hotcoco.mask` encodes them, one of each.
  """

  image: np.ndarray
  label: np.ndarray
  box: np.ndarray
  score: np.ndarray | None = None
  area: np.ndarray | None = None
  crowd: np.ndarray | None = None
  rle: Sequence[Mapping[str, Any]] | None = None


def evaluate(
  truths: Instances,
  detections: Instances,
  image_sizes: np.ndarray,
  class_names: Sequence[str],
  kind: Literal['box', 'mask'] = 'box',
) -> dict[str, float]:
  """Average precision and recall of detections.

  Args:
    truths: what is there.
    detections: what was found.
    image_sizes: (height, width) of every image that was looked at, `[images, 2]`.
    class_names: in the order of the labels.
    kind: what is compared. The size of an object that is found is that of its box or of its mask.

  Returns:
    The `NAMES`, and 'ap/CLASS' of each class. What no truth defines, such as the precision of a
    class that does not occur, is left out.
  """
  images = [
    {'id': index, 'height': height, 'width': width}
    for index, (height, width) in enumerate(np.asarray(image_sizes).tolist())
  ]
  categories = [{'id': index, 'name': name} for index, name in enumerate(class_names)]
  masks = kind == 'mask'
  expected = hotcoco.COCO.from_arrays(
    images,
    categories,
    np.asarray(truths.image, np.int64),
    np.asarray(truths.label, np.int64),
    to_xywh(truths.box),
    area=truths.area,
    iscrowd=truths.crowd,
    segmentation=list(truths.rle) if masks else None,
  )
  columns = (detections.image[:, None], to_xywh(detections.box))
  columns += (detections.score[:, None], detections.label[:, None])
  found = expected.load_res(
    np.concatenate(columns, axis=-1, dtype=np.float64),
    segmentation=list(detections.rle) if masks else None,
  )
  if masks and len(detections.rle):
    areas = rle_lib.area(list(detections.rle)).astype(np.float64)
    found.update_anns(ids=np.arange(1, len(areas) + 1), area=areas)
  evaluation = hotcoco.COCOeval(expected, found, 'segm' if masks else 'bbox')
  evaluation.evaluate()
  evaluation.accumulate()
  # Overlaps first, sizes and numbers of detections last; -1 where there is no truth.
  arrays = evaluation.eval
  parts = {
    name: arrays[what][_OVERLAPS[overlap], ..., _AREAS.index(area), _COUNTS.index(count)]
    for name, (what, overlap, area, count) in _ROWS.items()
  }
  for label, name in enumerate(class_names):
    parts[f'ap/{name}'] = arrays['precision'][:, :, label, 0, -1]
  defined = {name: values[values > -1] for name, values in parts.items()}
  return {name: float(np.mean(values)) for name, values in defined.items() if values.size}


def to_xywh(boxes: np.ndarray) -> np.ndarray:
  """Corners `[n, 4]` as COCO has boxes: corner, width, height."""
  low, high = np.split(np.asarray(boxes, np.float64), 2, axis=-1)
  return np.concatenate([low, high - low], axis=-1)


def table(metrics: Mapping[str, float]) -> str:
  """The results of `evaluate` as COCO prints them; -1 is what no truth defines."""
  lines = []
  for name, (what, overlap, area, count) in _ROWS.items():
    title = f'Average {what.capitalize()}'
    lines.append(
      f' {title:<18} (A{title[8]}) @[ IoU={overlap:<9} | area={area:>6} | maxDets={count:>3} ] = '
      f'{metrics.get(name, -1):.3f}'
    )
  return '\n'.join(lines)
