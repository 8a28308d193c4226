"""Whole images in the middle of a canvas. Needs nothing but numpy and Pillow.

Images are uint8 `[height, width, channels]`, RGB or of one channel. Exported models take this file
with them.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np
from PIL import Image

FILL = (114, 114, 114)


@dataclasses.dataclass(frozen=True)
class Letterbox:
  """A whole image in the middle of a canvas.

  Attributes:
    size: (height, width) of the image.
    canvas: (height, width) of the result.
    enlarge: whether images smaller than the canvas grow.
    fill: colour of the border.
  """

  size: tuple[int, int]
  canvas: tuple[int, int]
  enlarge: bool = True
  fill: Sequence[int] = FILL

  @property
  def scale(self) -> float:
    """Pixels of the canvas per pixel of the image."""
    fits = min(out / side for out, side in zip(self.canvas, self.size, strict=True))
    return fits if self.enlarge else min(fits, 1.0)

  @property
  def shown(self) -> tuple[int, int]:
    """(height, width) of the image on the canvas."""
    return tuple(max(round(side * self.scale), 1) for side in self.size)

  @property
  def margin(self) -> tuple[float, float]:
    """Height of the border above, width of that on the left; half pixels go to the other side."""
    return tuple((out - side) / 2 for out, side in zip(self.canvas, self.shown, strict=True))

  @property
  def offset(self) -> tuple[int, int]:
    """(top, left) of the image on the canvas."""
    return tuple(round(side - 0.1) for side in self.margin)

  def image(self, image: np.ndarray, area: bool = False) -> np.ndarray:
    """The image on its canvas; see `resized`."""
    (height, width), (top, left) = self.shown, self.offset
    canvas = filled(self.canvas, self.fill, image.shape[-1])
    canvas[top : top + height, left : left + width] = resized(image, self.shown, area)
    return canvas

  def boxes(self, boxes: np.ndarray) -> np.ndarray:
    """Boxes of the image as those on the canvas."""
    return boxes * self.scale + np.tile(self.margin[::-1], 2)

  def restored(self, boxes: np.ndarray) -> np.ndarray:
    """Boxes on the canvas as those of the image, moved onto its border where they leave it."""
    boxes = (boxes - np.tile(self.margin[::-1], 2)) / self.scale
    return np.clip(boxes, 0, np.tile(self.size[::-1], 2))


def resized(image: np.ndarray, size: tuple[int, int], area: bool = False) -> np.ndarray:
  """An image at (height, width), interpolated linearly between the four nearest pixels.

  With `area`, pixels of a smaller one are the means of what they cover.
  """
  if area and any(out < side for out, side in zip(size, image.shape[:2], strict=True)):
    return _averaged(image, size)
  scales = [side / out for out, side in zip(size, image.shape[:2], strict=True)]
  return transformed(image, size, np.diag([scales[1], scales[0], 1.0]), FILL)


def _averaged(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Of an image, means of equal parts, which begin and end within pixels."""
  pixels = image.astype(np.float64)
  for axis, out in enumerate(size):
    side = pixels.shape[axis]
    sums = np.insert(np.cumsum(pixels, axis), 0, 0, axis)
    edges = np.arange(out + 1) * (side / out)
    whole = np.minimum(edges.astype(int), side - 1)
    part = (edges - whole).reshape([-1 if other == axis else 1 for other in range(3)])
    sums = sums.take(whole, axis) + part * pixels.take(whole, axis)
    pixels = np.diff(sums, axis=axis) * (out / side)
  return np.rint(pixels).astype(np.uint8)


def transformed(
  image: np.ndarray, size: tuple[int, int], matrix: np.ndarray, fill: Sequence[int]
) -> np.ndarray:
  """Of an image, what a matrix `[3, 3]` assigns to each (x, y) of a result of (height, width)."""
  if size == image.shape[:2] and np.array_equal(matrix, np.eye(3)):
    return image
  affine = np.array_equal(matrix[2], [0, 0, 1])
  pixels = image
  if not np.array_equal(matrix, np.diag(np.diag(matrix))):
    # Without a rim, Pillow does not blend the outermost pixels with the colour beyond.
    pixels = filled((image.shape[0] + 2, image.shape[1] + 2), fill, image.shape[-1])
    pixels[1:-1, 1:-1] = image
    matrix = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]]) @ matrix
  shown = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).transform(
    size[::-1],
    Image.Transform.AFFINE if affine else Image.Transform.PERSPECTIVE,
    (matrix / matrix[2, 2]).ravel()[: 6 if affine else 8].tolist(),
    Image.Resampling.BILINEAR,
    fillcolor=tuple(fill) if pixels.shape[-1] == 3 else fill[0],
  )
  return np.asarray(shown).reshape(*size, -1)


def filled(size: Sequence[int], fill: Sequence[int], channels: int) -> np.ndarray:
  """A canvas of (height, width) of one colour."""
  canvas = np.empty((*size, channels), np.uint8)
  canvas[:] = np.tile(np.array(fill[:channels], np.uint8), (size[1], 1))
  return canvas
