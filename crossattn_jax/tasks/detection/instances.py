"""Objects on the host, in pixels of their files: detections as rows, masks as run lengths.

A data set has hundreds of thousands of them: what is kept of each is small, its mask included.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hotcoco import mask as rle_lib
import numpy as np

from crossattn_jax.geometry import mask_pasting
from crossattn_jax.metrics import coco

# Pixels of masks that are in memory at once.
_PIXELS_AT_ONCE = 2**26

RunLengths = Mapping[str, Any]


def encode_masks(
  probabilities: np.ndarray, boxes: np.ndarray, size: Sequence[int]
) -> list[RunLengths]:
  """Masks of boxes on their image, as run lengths.

  Args:
    probabilities: of the cells of each box, `[n, side, side]`.
    boxes: corners in pixels of the image, `[n, 4]`.
    size: (height, width) of the image.
  """
  size = tuple(map(int, size))
  at_once = max(1, _PIXELS_AT_ONCE // max(size[0] * size[1], 1))
  encoded = []
  for start in range(0, len(boxes), at_once):
    rows = slice(start, start + at_once)
    masks = mask_pasting.paste_masks(probabilities[rows], boxes[rows], size)
    encoded += rle_lib.encode(np.asfortranarray(np.moveaxis(masks, 0, -1)))
  return encoded


def to_rows(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The detections of some images without their padding, one row each.

  Args:
    found: 'index' `[images]` and 'original_size' `[images, 2]`, and the fields of
      `types.Detections` `[images, count, ...]`, in pixels of the image files.

  Returns:
    'seen' `[images]`, the images' indices; of each detection 'image', its image's index, 'box',
    'score', 'label'; and with masks 'counts', the bytes of all run lengths, and 'length', how many
    of those each has.
  """
  real = found['labels'] >= 0
  rows = {
    'seen': found['index'],
    'image': np.repeat(found['index'], real.sum(axis=1)),
    'box': found['boxes'][real],
    'score': found['scores'][real],
    'label': found['labels'][real],
  }
  if 'masks' in found:
    counts = [
      encoded['counts']
      for image, size in enumerate(found['original_size'])
      for encoded in encode_masks(
        found['masks'][image, real[image]], found['boxes'][image, real[image]], size
      )
    ]
    rows['counts'] = np.frombuffer(b''.join(counts), np.uint8)
    rows['length'] = np.array([len(count) for count in counts], np.int32)
  return rows


def to_coco(
  found: Mapping[str, np.ndarray],
  size: Sequence[int],
  image_id: int,
  category_ids: Sequence[int],
) -> list[dict[str, Any]]:
  """The detections of an image as entries of a result file of COCO.

  Args:
    found: the fields of `types.Detections` `[count, ...]`, in pixels of the image file.
    size: (height, width) of the file.
    image_id: its number.
    category_ids: number of each class.
  """
  real = found['labels'] >= 0
  boxes = found['boxes'][real].astype(np.float64)
  sides = boxes[:, 2:] - boxes[:, :2]
  entries = [
    {'image_id': image_id, 'category_id': int(category_ids[label]), 'bbox': box, 'score': score}
    for label, box, score in zip(
      found['labels'][real],
      np.round(np.concatenate([boxes[:, :2], sides], axis=-1), 3).tolist(),
      found['scores'][real].astype(np.float64).tolist(),
      strict=True,
    )
  ]
  if 'masks' in found:
    for entry, encoded in zip(
      entries, encode_masks(found['masks'][real], boxes, size), strict=True
    ):
      entry['segmentation'] = {'size': encoded['size'], 'counts': encoded['counts'].decode()}
  return entries


def evaluate(
  rows: Mapping[str, np.ndarray], source: Any, class_names: Sequence[str], *, masks: bool
) -> dict[str, float]:
  """COCO's metrics of boxes, 'box_NAME', and of masks, 'mask_NAME'.

  Args:
    rows: of all images that could be read, as `to_rows` has them.
    source: of the split, whose annotations are the truth.
    class_names: in the order of the labels.
    masks: whether there are masks.

  Returns:
    What `coco.evaluate` has; empty where there is no object.
  """
  return coco_metrics(*compared(rows, source, masks=masks), class_names)


def coco_metrics(
  truths: coco.Instances,
  found: coco.Instances,
  sizes: np.ndarray,
  class_names: Sequence[str],
) -> dict[str, float]:
  """What `evaluate` returns, of what `compared` does; of masks too where there are some."""
  metrics = {}
  for kind in ('box',) if truths.rle is None else ('box', 'mask'):
    results = coco.evaluate(truths, found, sizes, class_names, kind)
    metrics |= {f'{kind}_{name}': value for name, value in results.items()}
  return metrics


def compared(
  rows: Mapping[str, np.ndarray], source: Any, *, masks: bool
) -> tuple[coco.Instances, coco.Instances, np.ndarray]:
  """What is there and what was found, as metrics take it; images count among those that were seen.

  Args:
    rows: as for `evaluate`.
    source: likewise.
    masks: likewise.

  Returns:
    The truths, the detections, and (height, width) of the images.
  """
  seen = np.unique(rows['seen'])
  truths = [source.annotations(int(index)) for index in seen]
  sizes = np.array([objects.size for objects in truths]).reshape(-1, 2)
  expected = coco.Instances(
    image=np.repeat(np.arange(len(seen)), [len(objects) for objects in truths]),
    label=np.concatenate([objects.labels for objects in truths]),
    box=np.concatenate([objects.boxes for objects in truths]),
    area=np.concatenate([objects.area for objects in truths]),
    crowd=np.concatenate([objects.crowd for objects in truths]),
    rle=[rle for objects in truths for rle in objects.run_lengths()] if masks else None,
  )
  image = np.searchsorted(seen, rows['image'])
  found = coco.Instances(
    image=image,
    label=rows['label'],
    box=rows['box'],
    score=rows['score'],
    rle=_run_lengths(rows, sizes[image]) if masks else None,
  )
  return expected, found, sizes


def _run_lengths(rows: Mapping[str, np.ndarray], sizes: np.ndarray) -> list[RunLengths]:
  ends = np.cumsum(rows['length'])
  return [
    {'size': size, 'counts': rows['counts'][end - length : end].tobytes()}
    for size, end, length in zip(sizes.tolist(), ends, rows['length'], strict=True)
  ]
