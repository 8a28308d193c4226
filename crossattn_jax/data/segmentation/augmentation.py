"""Random scaling, cropping and mirroring of an image and its label map, as CCNet's recipe does."""

from collections.abc import Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Draw:
  """What is random about one example.

  Attributes:
    scale: of the image.
    top: row of the crop in the scaled and padded image.
    left: column of it.
    mirrored: left to right, after cropping.
    size: (height, width) of the scaled image where it is not its size times the scale; then the
      scale has no effect.
  """

  scale: float
  top: int
  left: int
  mirrored: bool
  size: tuple[int, int] | None = None


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
  """(height, width) after scaling, halves rounded to even."""
  return round(size[0] * scale), round(size[1] * scale)


def draw(
  rng: np.random.Generator,
  size: Sequence[int],
  crop: Sequence[int],
  scales: Sequence[float],
  mirror: float = 0.5,
) -> Draw:
  """Draws scale, place and mirroring.

  Args:
    rng: of the example.
    size: (height, width) of the image.
    crop: (height, width) of the result.
    scales: that are equally likely.
    mirror: probability of a mirror image.
  """
  scale = float(scales[rng.integers(len(scales))])
  rows, columns = scaled_size(size, scale)
  top = int(rng.integers(max(rows - crop[0], 0) + 1))
  left = int(rng.integers(max(columns - crop[1], 0) + 1))
  return Draw(scale, top, left, bool(rng.random() < mirror))


def apply(
  image: np.ndarray,
  label: np.ndarray,
  choice: Draw,
  crop: Sequence[int],
  *,
  padding: Sequence[float] = (0, 0, 0),
  ignore_label: int = 255,
) -> tuple[np.ndarray, np.ndarray]:
  """Scales, pads at the bottom and the right, crops, mirrors; computes the crop's pixels only.

  The image is interpolated linearly between the centres of its pixels, the label is not. Equals
  OpenCV's `resize` on bytes, which rounds twice, to one grey level.

  Args:
    image: uint8 `[height, width, bands]`.
    label: `[height, width]`.
    choice: what to do.
    crop: (height, width) of the result.
    padding: value of the image beyond its edges, per band.
    ignore_label: value of the label there.

  Returns:
    float32 `[*crop, bands]` of whole numbers where the image is, and the label `[*crop]`.
  """
  taps = []
  for index, scale, length in _shown(image.shape[:2], choice, crop):
    position = np.clip((index + 0.5) / scale - 0.5, 0, length - 1)
    low = np.minimum(position.astype(int), max(length - 2, 0))
    taps.append((low, np.minimum(low + 1, length - 1), (position - low).astype(np.float32)))
  (above, below, down), (before, after, right) = taps
  # What is not shown need not be interpolated.
  first, last = (before[0], after[-1] + 1) if len(before) else (0, 0)
  part = image[:, first:last]
  rows = part.take(above, axis=0).astype(np.float32)
  lower = part.take(below, axis=0).astype(np.float32)
  lower -= rows
  lower *= down[:, None, None]
  rows += lower
  columns = rows.take(before - first, axis=1)
  beyond = rows.take(after - first, axis=1)
  beyond -= columns
  beyond *= right[None, :, None]
  columns += beyond
  out = np.empty((*crop, image.shape[2]), np.float32)
  if columns.shape[:2] != tuple(crop):
    out[:] = np.asarray(padding, np.float32)
  np.rint(columns, out=out[: len(above), : len(before)])
  out_label = np.full(tuple(crop), ignore_label, label.dtype)
  out_label[: len(above), : len(before)] = crop_label(label, choice, crop)
  if choice.mirrored:
    out, out_label = out[:, ::-1], out_label[:, ::-1]
  return out, out_label


def crop_label(label: np.ndarray, choice: Draw, crop: Sequence[int]) -> np.ndarray:
  """Scales a label map `[height, width]` and crops it to what the crop shows of it."""
  rows, columns = (
    np.minimum((index / scale).astype(int), length - 1)
    for index, scale, length in _shown(label.shape, choice, crop)
  )
  return label[rows[:, None], columns[None]]


def resize(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
  """Resizes an image, uint8 `[height, width, bands]`, to (height, width) as `apply` does."""
  whole = Draw(1.0, 0, 0, False, tuple(size))
  pixels, _ = apply(image, image[..., 0], whole, size, padding=(0,) * image.shape[-1])
  return pixels.astype(image.dtype)


def _shown(
  size: Sequence[int], choice: Draw, crop: Sequence[int]
) -> list[tuple[np.ndarray, float, int]]:
  """Of each axis: which rows of the scaled image the crop shows, the scale, the length."""
  scaled = choice.size or scaled_size(size, choice.scale)
  return [
    (
      np.arange(start, max(min(start + extent, end), start)),
      end / length if choice.size else choice.scale,
      length,
    )
    for start, extent, end, length in zip(
      (choice.top, choice.left), crop, scaled, size, strict=True
    )
  ]
