"""Objects of an image: boxes, classes and masks as a data set says them.

Masks are what COCO's tools take: a list of polygons `[[x, y, x, y, ...], ...]`, or run lengths
`{'size': [height, width], 'counts': ...}`, compressed or not, which `hotcoco.mask` decodes.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

from hotcoco import mask as coco_mask
import numpy as np

Segmentation = Sequence[Sequence[float]] | Mapping[str, Any]

# Numbers of the smallest polygon: three corners.
_LEAST_NUMBERS = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
  """The n objects of an image, in its pixels.

  Attributes:
    size: (height, width) of the image. Decoded it must have this size: see `check_size`.
    boxes: float64 `[n, 4]`, corners `x_min, y_min, x_max, y_max`. They are the file's: a part of a
      box may be beyond the image, and a side may be 0.
    labels: int32 `[n]`, classes.
    crowd: bool `[n]`: several objects in one, which count neither as found nor as missed.
    area: float64 `[n]`, in pixels: of the mask where there is one and the file says nothing else.
    ids: int64 `[n]`, by which messages name them.
    segmentations: the mask of each; None where the data set has boxes alone.
  """

  size: tuple[int, int]
  boxes: np.ndarray
  labels: np.ndarray
  crowd: np.ndarray
  area: np.ndarray
  ids: np.ndarray
  segmentations: Sequence[Segmentation] | None = None

  def __len__(self) -> int:
    return len(self.labels)

  @property
  def learnable(self) -> np.ndarray:
    """Which objects are learnt from, bool `[n]`: those that mmdetection takes.

    They are no crowd, have an area, are at least one pixel wide and high, and meet the image.
    """
    sides = self.boxes[:, 2:] - self.boxes[:, :2]
    inside = np.clip(self.boxes, 0, np.tile(self.size[::-1], 2))
    meets = (inside[:, 2:] > inside[:, :2]).all(1)
    return ~self.crowd & (self.area > 0) & (sides >= 1).all(1) & meets

  def run_lengths(self) -> list[dict[str, Any]]:
    """The masks as COCO's compressed run lengths, with which `hotcoco` evaluates.

    Raises:
      ValueError: the data set has boxes alone.
    """
    if self.segmentations is None:
      raise ValueError('this data set has boxes and no masks; set dataset.masks=False')
    return [run_lengths(segmentation, self.size) for segmentation in self.segmentations]

  def masks(self) -> np.ndarray:
    """The masks in pixels, bool `[n, height, width]`.

    Raises:
      ValueError: the data set has boxes alone.
    """
    masks = np.zeros((len(self), *self.size), bool)
    for mask, encoded in zip(masks, self.run_lengths(), strict=True):
      mask[...] = coco_mask.decode(encoded)
    return masks


def check_size(objects: Objects, size: tuple[int, int], key: str) -> None:
  """Refuses an image of another size than that which its objects are in.

  Args:
    objects: of the image.
    size: (height, width) of the decoded image.
    key: the image's name.

  Raises:
    ValueError: the sizes differ.
  """
  if tuple(size) == tuple(objects.size):
    return
  turned = (
    '; its objects are those of an image that is not turned as its EXIF data says, or the reverse: '
    'dataset.decoding.upright says whether images are'
    if tuple(size) == tuple(objects.size[::-1])
    else '; correct one of both'
  )
  raise ValueError(
    f'image {key!r} has {size[0]} x {size[1]} pixels (height x width), its annotations are for '
    f'{objects.size[0]} x {objects.size[1]}{turned}'
  )


def run_lengths(segmentation: Segmentation, size: tuple[int, int]) -> dict[str, Any]:
  """A mask as compressed run lengths; polygons are joined, as COCO's tools do.

  Args:
    segmentation: that `read` has accepted.
    size: (height, width) of the image.
  """
  encoded = coco_mask.frPyObjects(segmentation, *size)
  return coco_mask.merge(encoded) if isinstance(encoded, list) else encoded


def area(segmentation: Segmentation, size: tuple[int, int]) -> int:
  """Pixels of a mask that `read` has accepted."""
  return int(coco_mask.area(run_lengths(segmentation, size)))


def read(segmentation: Any) -> Segmentation | None:
  """Checks what a file says of a mask; None where it says nothing.

  Polygons of fewer than three corners, which enclose nothing, are left out beside others.

  Raises:
    ValueError: it is none; the message says what it has or is.
  """
  if segmentation is None or (isinstance(segmentation, Sequence | Mapping) and not segmentation):
    return None
  if isinstance(segmentation, Mapping):
    return _checked_run_lengths(segmentation)
  if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
    raise ValueError(
      'a segmentation that is neither a list of polygons [[x, y, x, y, ...], ...] nor run lengths '
      "{'size': [height, width], 'counts': ...}"
    )
  for part in segmentation:
    if len(part) % 2:
      raise ValueError(f'a polygon of {len(part)} numbers, where x and y take turns')
    try:
      finite = math.isfinite(sum(part))
    except TypeError:
      finite = False
    if not finite:
      raise ValueError('a polygon with a coordinate that is no number')
  polygons = [part for part in segmentation if len(part) >= _LEAST_NUMBERS]
  if not polygons:
    raise ValueError(
      f'a polygon of {max(map(len, segmentation))} numbers; three corners have {_LEAST_NUMBERS}'
    )
  return polygons


def _checked_run_lengths(segmentation: Mapping[str, Any]) -> Mapping[str, Any]:
  size, counts = segmentation.get('size'), segmentation.get('counts')
  if not _is_size(size):
    raise ValueError(f"run lengths whose 'size' is {size!r}, not [height, width]")
  try:
    if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
      raise ValueError(f'the counts add up to {sum(counts)}, not to {size[0]} x {size[1]}')
    coco_mask.area(coco_mask.frPyObjects(segmentation, *size))
  except (ValueError, TypeError, OverflowError) as error:
    raise ValueError(f'run lengths that cannot be read: {error}') from error
  return segmentation


def _is_size(size: Any) -> bool:
  whole = isinstance(size, list) and all(type(side) is int and side > 0 for side in size)
  return whole and len(size) == 2


def enclosing_box(segmentation: Segmentation) -> tuple[float, float, float, float]:
  """The smallest `x_min, y_min, x_max, y_max` around a mask that `read` has accepted."""
  if isinstance(segmentation, Mapping):
    encoded = coco_mask.frPyObjects(segmentation, *segmentation['size'])
    x, y, width, height = coco_mask.toBbox(encoded).tolist()
    return x, y, x + width, y + height
  x = [value for part in segmentation for value in part[::2]]
  y = [value for part in segmentation for value in part[1::2]]
  return min(x), min(y), max(x), max(y)
