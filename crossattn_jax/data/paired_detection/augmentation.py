"""Augmentation of aligned pairs, such as RGB and thermal images: one geometry, colours apart.

As YOLOv5 and ICAFusion train: mosaics of four images, one warp, borders of middle grey. A geometry
is made once, of sizes and numbers that were drawn before; both images and the boxes go through it.
Images are uint8 `[height, width, channels]`, RGB or grey with one channel; boxes are corners in
pixels, `[count, 4]`.
"""

from collections.abc import Sequence
import dataclasses

import ml_collections
import numpy as np

from crossattn_jax.data.paired_detection import placement


@dataclasses.dataclass(frozen=True)
class Mosaic:
  """Four images around a point: top left, top right, bottom left, bottom right.

  Attributes:
    sizes: (height, width) of each.
    center: (y, x) where their corners meet.
    canvas: (height, width) of the result, which cuts off what leaves it.
    fill: colour where no image is.
  """

  sizes: Sequence[tuple[int, int]]
  center: tuple[int, int]
  canvas: tuple[int, int]
  fill: Sequence[int] = placement.FILL

  @property
  def corners(self) -> list[tuple[int, int]]:
    """(top, left) of each image on the canvas, negative where it is cut off."""
    y, x = self.center
    return [
      (y - height * (index < 2), x - width * (index % 2 == 0))
      for index, (height, width) in enumerate(self.sizes)
    ]

  def image(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """The four images on one canvas."""
    canvas = placement.filled(self.canvas, self.fill, max(image.shape[-1] for image in images))
    for image, (top, left) in zip(images, self.corners, strict=True):
      shown = image[max(-top, 0) :, max(-left, 0) :]
      part = canvas[max(top, 0) :, max(left, 0) :][: shown.shape[0], : shown.shape[1]]
      part[:] = shown[: part.shape[0], : part.shape[1]]
    return canvas

  def boxes(self, boxes: Sequence[np.ndarray]) -> np.ndarray:
    """The boxes of all four in one array, moved onto the canvas's border where they leave it."""
    moved = [
      of_image + np.array([left, top, left, top], of_image.dtype)
      for of_image, (top, left) in zip(boxes, self.corners, strict=True)
    ]
    return np.clip(np.concatenate(moved), 0, np.tile(self.canvas[::-1], 2))


@dataclasses.dataclass(frozen=True)
class Warp:
  """A canvas seen from elsewhere: perspective, then rotation and scale, shear, translation.

  Attributes:
    size: (height, width) of the canvas.
    shown: (height, width) of the result.
    perspective: of x and y, per pixel from the canvas's centre.
    degrees: counterclockwise.
    scale: pixels of the result per pixel of the canvas.
    shear: of x and y, in degrees.
    center: (x, y) in the result of the canvas's centre, as fractions of its sides.
    fill: colour beyond the canvas.
  """

  size: tuple[int, int]
  shown: tuple[int, int]
  perspective: tuple[float, float] = (0.0, 0.0)
  degrees: float = 0.0
  scale: float = 1.0
  shear: tuple[float, float] = (0.0, 0.0)
  center: tuple[float, float] = (0.5, 0.5)
  fill: Sequence[int] = placement.FILL

  @property
  def matrix(self) -> np.ndarray:
    """From homogeneous (x, y, 1) on the canvas to those in the result, `[3, 3]`."""
    centered, perspective, sheared, moved = (np.eye(3) for _ in range(4))
    centered[:2, 2] = -self.size[1] / 2, -self.size[0] / 2
    perspective[2, :2] = self.perspective
    turn = np.deg2rad(self.degrees)
    cos, sin = self.scale * np.cos(turn), self.scale * np.sin(turn)
    turned = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    sheared[0, 1], sheared[1, 0] = np.tan(np.deg2rad(self.shear))
    moved[:2, 2] = self.center[0] * self.shown[1], self.center[1] * self.shown[0]
    return moved @ sheared @ turned @ perspective @ centered

  def image(self, image: np.ndarray) -> np.ndarray:
    """The canvas in its new view, interpolated linearly between the four nearest pixels."""
    # The matrix counts from the middle of the first pixel, Pillow from its corner.
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    inverse = shift @ np.linalg.inv(self.matrix) @ np.linalg.inv(shift)
    return placement.transformed(image, self.shown, inverse, self.fill)

  def boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes around the warped ones, and which of them still show enough of their objects.

    Returns:
      Corners `[count, 4]` moved onto the border, and booleans `[count]`: sides of more than two
      pixels, of which neither is 20 times the other, and more than a tenth of the area.
    """
    corners = boxes[:, [[0, 1], [2, 3], [0, 3], [2, 1]]]
    points = np.concatenate([corners, np.ones_like(corners[..., :1])], axis=-1) @ self.matrix.T
    points = points[..., :2] / points[..., 2:]
    warped = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=-1)
    warped = np.clip(warped, 0, np.tile(self.shown[::-1], 2))
    before = (boxes[:, 2:] - boxes[:, :2]) * self.scale
    after = warped[:, 2:] - warped[:, :2]
    large = (after > 2).all(axis=1) & (after.prod(axis=1) > 0.1 * before.prod(axis=1))
    return warped, large & (after.max(axis=1) < 20 * after.min(axis=1))


def draw_center(rng: np.random.Generator, shown: Sequence[int]) -> tuple[int, int]:
  """Draws the centre (y, x) of a mosaic of twice the (height, width) of what is shown."""
  return tuple(int(rng.uniform(side / 2, 3 * side / 2)) for side in shown)


def draw_warp(
  rng: np.random.Generator,
  size: tuple[int, int],
  shown: tuple[int, int],
  options: ml_collections.ConfigDict,
) -> Warp:
  """Draws a warp.

  Args:
    rng: of the example.
    size: (height, width) of the canvas.
    shown: (height, width) of the result.
    options: `config.dataset.augmentation`.
  """

  def pair(middle: float, most: float) -> tuple[float, float]:
    return tuple(rng.uniform(middle - most, middle + most, 2).tolist())

  return Warp(
    size,
    shown,
    perspective=pair(0, options.perspective),
    degrees=float(rng.uniform(-options.degrees, options.degrees)),
    scale=float(rng.uniform(1 - options.scale, 1 + options.scale)),
    shear=pair(0, options.shear),
    center=pair(0.5, options.translate),
  )


def draw_gains(rng: np.random.Generator, options: ml_collections.ConfigDict) -> np.ndarray:
  """Draws the gains of hue, saturation and value; see `jitter_color`."""
  most = np.array([options.hue, options.saturation, options.value])
  return 1 + rng.uniform(-1, 1, 3) * most


_LEVELS = np.arange(256)
# How much of the saturation red, green and blue lack, of each hue: float32 `[3, 180]`.
_SECTOR, _REST = np.divmod(np.arange(180, dtype=np.float32) * np.float32(6 / 180), 1)
_LACKING = np.stack(
  [
    np.choose((_SECTOR.astype(int) + shift) % 6, np.broadcast_arrays(0, _REST, 1, 1, 1 - _REST, 0))
    for shift in (0, 4, 2)
  ]
).astype(np.float32)
# In fixed point of 12 bits, per level of the divisor.
_SATURATION_FACTORS, _HUE_FACTORS = (
  np.rint((numerator << 12) / np.maximum(_LEVELS, 1)).astype(np.int32) for numerator in (255, 30)
)


def jitter_color(image: np.ndarray, gains: Sequence[float]) -> np.ndarray:
  """Multiplies hue, saturation and value, by the 8-bit rules of OpenCV's HSV.

  Of grey images only the value changes.

  Args:
    image: uint8 RGB, or grey with one channel.
    gains: of hue, which wraps around, and of saturation and value, which saturate.
  """
  hues = (_LEVELS * gains[0] % 180).astype(np.uint8)
  saturations, values = (
    np.clip(_LEVELS * gain, 0, 255).astype(np.uint8).astype(np.float32) * np.float32(1 / 255)
    for gain in gains[1:]
  )
  if image.shape[-1] == 1:
    return np.rint(values * 255).astype(np.uint8)[image]
  hue, saturation, value = _to_hsv(image)
  saturation, value = saturations[saturation], values[value]
  changed = np.empty_like(image)
  for channel, lacking in enumerate(_LACKING):
    shown = value * (1 - saturation * lacking[hues][hue])
    changed[..., channel] = np.rint(shown * 255, out=shown)
  return changed


def _to_hsv(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Hue in 0..179, saturation and value in 0..255: integers, in fixed point of 12 bits."""
  red, green, blue = np.ascontiguousarray(np.moveaxis(image, -1, 0))
  value = np.maximum(np.maximum(red, green), blue)
  spread = value - np.minimum(np.minimum(red, green), blue)
  saturation = (spread * _SATURATION_FACTORS[value] + 2048) >> 12
  is_red, is_green = value == red, value == green
  red, green, blue, wide = (x.astype(np.int16) for x in (red, green, blue, spread))
  hue = np.where(is_green, blue - red + 2 * wide, red - green + 4 * wide)
  hue = np.where(is_red, green - blue, hue)
  hue = (hue * _HUE_FACTORS[spread] + 2048) >> 12
  return hue + 180 * (hue < 0), saturation, value
