"""Region features of procedural scenes: what is in each object's box, as a vector.

They stand in for the features of a detector, so that retrieval needs no network. A feature is a
fixed function of the pixels in the box; what the scene knows about the object has no part in it.
"""

from collections.abc import Sequence
import functools

import numpy as np
from PIL import Image

# Side of the square to which the pixels of a box are resized.
_SIDE = 24
# Levels per colour channel of a histogram.
_LEVELS = 4
# Cells along each side, and directions, of the orientation histograms (Dalal and Triggs 2005).
_CELLS = 4
_DIRECTIONS = 8
_SEED = 20


def region_features(
  image: np.ndarray, boxes: Sequence[tuple[float, float, float, float]], channels: int
) -> np.ndarray:
  """Describes the pixels in boxes of an image.

  Square roots of two colour histograms, of the box and of its central quarter; histograms of the
  directions of edges in 4 x 4 cells; the size of the box. All of them are mapped to `channels` by a
  fixed random matrix, and negative values cut off: like the features of a detector, regions are
  non-negative and sparse.

  Args:
    image: uint8 RGB `[height, width, 3]`.
    boxes: (top, left, bottom, right) as shares of height and width; at least a pixel each.
    channels: of the result.

  Returns:
    float32 `[boxes, channels]`.
  """
  described = np.stack([_describe(image, box) for box in boxes])
  return np.maximum(described @ _projection(described.shape[1], channels), 0)


def _describe(image: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
  height, width = image.shape[:2]
  top, bottom = round(box[0] * height), round(box[2] * height)
  left, right = round(box[1] * width), round(box[3] * width)
  part = Image.fromarray(image[top:bottom, left:right])
  pixels = np.asarray(part.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
  quarter = slice(_SIDE // 4, _SIDE - _SIDE // 4)
  parts = [
    _color_histogram(pixels),
    _color_histogram(pixels[quarter, quarter]),
    _edge_histograms(pixels.mean(-1) / 255),
    np.array([(bottom - top) / height, (right - left) / width]),
  ]
  return np.concatenate(parts).astype(np.float32)


def _color_histogram(pixels: np.ndarray) -> np.ndarray:
  """Square roots of the shares of 4 x 4 x 4 colours: a vector of length one."""
  levels = pixels.reshape(-1, 3).astype(np.int64) * _LEVELS // 256
  bins = np.ravel_multi_index(levels.T, (_LEVELS,) * 3)
  return np.sqrt(np.bincount(bins, minlength=_LEVELS**3) / len(bins))


def _edge_histograms(luma: np.ndarray) -> np.ndarray:
  """Strength of the edges of each direction in each cell: a vector of length one, or zeros."""
  down, right = np.gradient(luma)
  direction = np.floor(np.arctan2(down, right) % np.pi * (_DIRECTIONS / np.pi)).astype(np.int64)
  cell = np.arange(_SIDE) * _CELLS // _SIDE
  bins = (cell[:, None] * _CELLS + cell) * _DIRECTIONS + direction % _DIRECTIONS
  strengths = np.bincount(
    bins.ravel(), np.hypot(down, right).ravel(), minlength=_CELLS**2 * _DIRECTIONS
  )
  return strengths / max(np.linalg.norm(strengths), 1e-6)


@functools.cache
def _projection(described: int, channels: int) -> np.ndarray:
  rng = np.random.default_rng(_SEED)
  return rng.standard_normal((described, channels), np.float32)
