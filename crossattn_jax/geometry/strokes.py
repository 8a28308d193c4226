"""Drawings as strokes: lists of `[points, 2]`, the x and y that a pen passes, y downwards.

QuickDraw has two forms of them: simplified drawings, `[[[x, x, ...], [y, y, ...]], ...]` in 0..255,
and stroke-3 (sketch-rnn), rows of steps dx, dy and whether the pen is lifted afterwards.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Strokes = Sequence[np.ndarray]


def from_simplified(drawing: Sequence[Sequence[Sequence[float]]]) -> list[np.ndarray]:
  """Strokes of a simplified drawing, in its own numbers.

  Raises:
    ValueError: it is none; the message says what it has.
  """
  if not isinstance(drawing, list) or not drawing:
    raise ValueError('no strokes; expected [[[x, x, ...], [y, y, ...]], ...]')
  return [_checked(stroke, number) for number, stroke in enumerate(drawing, 1)]


def _checked(stroke: Any, number: int) -> np.ndarray:
  try:
    points = np.array(stroke)
  except ValueError:
    points = np.empty(0)
  if points.ndim == 2 and len(points) == 3:
    raise ValueError(
      f'times in stroke {number}, as the raw drawings have them; expected the simplified ones'
    )
  if points.ndim != 2 or len(points) != 2 or not points.size or points.dtype.kind not in 'iuf':
    raise ValueError(f'a stroke {number} that is not [[x, x, ...], [y, y, ...]]')
  return points.T


def from_stroke3(rows: np.ndarray) -> list[np.ndarray]:
  """Strokes of a stroke-3 drawing `[steps, 3]`, from (0, 0) on.

  Raises:
    ValueError: it is none.

  Examples:
    >>> strokes = from_stroke3(np.array([[5, 0, 0], [0, 5, 1], [3, 3, 1]]))
    >>> [stroke.tolist() for stroke in strokes]
    [[[5, 0], [5, 5]], [[8, 8]]]
  """
  if rows.ndim != 2 or rows.shape[1] != 3 or not len(rows):
    raise ValueError(f'the shape {list(rows.shape)}; expected [steps, 3] of dx, dy, pen lifted')
  points = np.cumsum(rows[:, :2], axis=0)
  parts = np.split(points, np.flatnonzero(rows[:, 2] > 0) + 1)
  return [part for part in parts if len(part)]


def with_dots(strokes: Strokes) -> list[np.ndarray]:
  """The same, single points as lines to themselves: Pillow draws nothing of a point alone."""
  return [np.repeat(stroke, 2, axis=0) if len(stroke) == 1 else stroke for stroke in strokes]


def fit(strokes: Strokes, size: int, padding: float = 0) -> list[np.ndarray]:
  """A drawing in the upper left corner of a square, as large as it can be, in float64.

  Args:
    strokes: in any place and of any size; their proportions are kept.
    size: of the square.
    padding: that is left on each side.
  """
  points = np.concatenate(strokes)
  low, extent = points.min(axis=0), np.ptp(points, axis=0).max()
  scale = (size - 2 * padding) / max(extent, 1e-9)
  return [(stroke - low) * scale + padding for stroke in strokes]
