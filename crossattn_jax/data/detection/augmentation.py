"""Views of an image: which part is shown, at which size, and whether mirrored.

Pixels, boxes and masks of a view are made of the original ones in one step each, so that they lie
on each other.
"""

from collections.abc import Sequence
import dataclasses

import ml_collections
import numpy as np
from PIL import Image

from crossattn_jax.data import resizing


@dataclasses.dataclass(frozen=True)
class View:
  """A part of an image as the network sees it.

  Attributes:
    region: x_min, y_min, x_max, y_max of the part in the image, in pixels.
    size: (height, width) at which it is shown.
    mirrored: whether left and right change places.
  """

  region: tuple[float, float, float, float]
  size: tuple[int, int]
  mirrored: bool = False

  def image(self, image: Image.Image) -> np.ndarray:
    """Pixels uint8 `[height, width, 3]`, interpolated linearly, over more pixels where shrunk."""
    shown = image.resize(self.size[::-1], Image.Resampling.BILINEAR, self.region)
    pixels = np.asarray(shown)
    return pixels[:, ::-1] if self.mirrored else pixels

  def boxes(self, boxes: np.ndarray) -> np.ndarray:
    """Corners `[count, 4]` of boxes in the image as those in the view, moved onto its border."""
    x_min, y_min, x_max, y_max = self.region
    height, width = self.size
    factors = width / (x_max - x_min), height / (y_max - y_min)
    boxes = (boxes - np.tile((x_min, y_min), 2)) * np.tile(factors, 2)
    boxes = np.clip(boxes, 0, np.tile((width, height), 2))
    if self.mirrored:
      boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return boxes

  def mask(self, mask: np.ndarray) -> np.ndarray:
    """Of a mask `[height, width]` of the image: the nearest pixel of each of the view's."""
    x_min, y_min, x_max, y_max = self.region
    rows, columns = (
      (low + (np.arange(count) + 0.5) * ((high - low) / count)).astype(int)
      for low, high, count in zip((y_min, x_min), (y_max, x_max), self.size, strict=True)
    )
    if self.mirrored:
      columns = columns[::-1]
    return mask.take(columns, axis=1).take(rows, axis=0)


def whole(size: Sequence[int], shown: Sequence[int]) -> View:
  """The view of a whole image of one (height, width) at another."""
  return View((0, 0, size[1], size[0]), tuple(shown))


def draw(
  rng: np.random.Generator,
  size: Sequence[int],
  canvas: Sequence[int],
  options: ml_collections.ConfigDict,
  multiple: int = 1,
) -> View:
  """Draws a view for training.

  Args:
    rng: of the example.
    size: (height, width) of the image.
    canvas: (height, width) that holds the view.
    options: `config.dataset.augmentation`.
    multiple: of sides of what is resized, see `resizing.fit`.
  """
  region, part = (0, 0, size[1], size[0]), size
  if rng.random() < options.crop.probability:
    region, part = _draw_crop(rng, size, canvas, options, multiple)
  box = longest(options, canvas), _draw_side(rng, shortest(options, canvas), options.short_step)
  return View(region, resizing.fit(part, box, canvas, multiple), bool(rng.random() < options.flip))


def longest(options: ml_collections.ConfigDict, canvas: Sequence[int]) -> int:
  """The most that long sides may be: what `options.long_side` says, or else the canvas."""
  return max(canvas) if options.long_side is None else options.long_side


def shortest(options: ml_collections.ConfigDict, canvas: Sequence[int]) -> tuple[int, int]:
  """The least and the most that short sides may be, as `longest`."""
  return (min(canvas),) * 2 if options.short_side is None else tuple(options.short_side)


def _draw_side(rng: np.random.Generator, ends: Sequence[int], step: int) -> int:
  return int(rng.choice(np.arange(ends[0], ends[1] + 1, step)))


def _draw_crop(
  rng: np.random.Generator,
  size: Sequence[int],
  canvas: Sequence[int],
  options: ml_collections.ConfigDict,
  multiple: int,
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
  """The part of an image that a crop of the resized image shows, and the crop's size."""
  box = longest(options, canvas), _draw_side(rng, options.crop.short_side, options.crop.short_step)
  resized = resizing.fit(size, box, multiple=multiple)
  low, high = options.crop.sides
  crop = [int(rng.integers(min(low, side), min(high, side), endpoint=True)) for side in resized]
  # Batches are of one orientation: a crop keeps that of its image.
  crop.sort(reverse=size[0] > size[1])
  start = [
    int(rng.integers(side - part, endpoint=True)) for side, part in zip(resized, crop, strict=True)
  ]
  (top, bottom), (left, right) = (
    (first * side / length, min((first + part) * side / length, side))
    for first, part, side, length in zip(start, crop, size, resized, strict=True)
  )
  return (left, top, right, bottom), tuple(crop)
