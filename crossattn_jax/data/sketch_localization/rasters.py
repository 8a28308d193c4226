"""Drawings as pixels: strokes as Pillow's lines, images as they are, in one style for a network.

The sketch encoder sees drawings in one style only. That of the release of LocFormer are thin white
lines on black, cut off beyond 224 of QuickDraw's 255 pixels; its repair, by others, draws them
larger, whole and black on white.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_collections
import numpy as np
from PIL import Image, ImageDraw

from crossattn_jax.data import levels
from crossattn_jax.geometry import strokes as strokes_lib

Drawing = strokes_lib.Strokes | np.ndarray

_WHITE = 255


@dataclasses.dataclass(frozen=True)
class Style:
  """How strokes become pixels.

  Attributes:
    line_width: in pixels.
    rescale: whether a drawing fills the square; otherwise its numbers are pixels.
    invert: whether lines are white on black.
    padding: pixels around a drawing that fills the square.
  """

  line_width: int = 1
  rescale: bool = False
  invert: bool = True
  padding: int = 10

  def raster(self, strokes: strokes_lib.Strokes, size: int) -> np.ndarray:
    """Draws strokes into a square, uint8 `[size, size]`; what is beyond is cut off."""
    if self.rescale:
      strokes = strokes_lib.fit(strokes, size, self.padding)
    image = Image.new('L', (size, size), _WHITE)
    pen = ImageDraw.Draw(image)
    for stroke in strokes:
      # Towards zero: so the original's numbers become pixels.
      pen.line([tuple(point) for point in stroke.astype(int).tolist()], 0, self.line_width)
    pixels = np.asarray(image)
    return _WHITE - pixels if self.invert else pixels


STYLES: Mapping[str, Style] = {
  'release': Style(line_width=1, rescale=False, invert=True),
  'repaired': Style(line_width=2, rescale=True, invert=False),
}


def style_of(config: ml_collections.ConfigDict) -> Style:
  """The style that `config.dataset.sketches` names, with what it changes."""
  given = {name: config[name] for name in ('line_width', 'invert') if config[name] is not None}
  return dataclasses.replace(STYLES[config.style], **given)


def raster(drawing: Drawing, config: ml_collections.ConfigDict) -> np.ndarray:
  """A drawing as the network sees it, uint8 `[size, size]`.

  Args:
    drawing: strokes, or an image of black lines on white, uint8 `[height, width]`.
    config: `config.dataset.sketches`.
  """
  style, size = style_of(config), config.size
  if config.blank:
    return np.full((size, size), 0 if style.invert else _WHITE, np.uint8)
  if not isinstance(drawing, np.ndarray):
    return style.raster(drawing, size)
  image = Image.fromarray(drawing).resize((size, size), Image.Resampling.BILINEAR)
  pixels = np.asarray(image)
  return _WHITE - pixels if style.invert else pixels


def normalized(pixels: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
  """A raster `[size, size]` as the network's input, float32 `[size, size, 3]`.

  Args:
    pixels: what `raster` returns.
    config: `config.dataset`, whose mean and deviation are those of the photos.
  """
  return levels.normalize(np.repeat(pixels[..., None], 3, axis=-1), config)


def describe(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """How strokes become pixels, as JSON can hold it; see docs/export.md."""
  return {'size': config.size, 'count': config.count, **dataclasses.asdict(style_of(config))}
