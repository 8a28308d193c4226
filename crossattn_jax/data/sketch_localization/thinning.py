"""Lines that were drawn with a pen of any width, as the paths of its tip."""

from collections.abc import Sequence
import itertools

import numpy as np
from scipy import ndimage

# The neighbours of a pixel as (row, column), clockwise from above.
_AROUND = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def thin(ink: np.ndarray) -> np.ndarray:
  """Takes pixels off both sides of lines until they are one pixel wide, bool `[height, width]`.

  What is connected, corners included, stays so. Source: Guo and Hall 1989, algorithm A1.
  """
  ink = np.pad(np.asarray(ink, bool), 1)
  while True:
    before = ink.sum()
    for turn in (0, 4):  # From the lower left, then from the upper right.
      around = np.stack([np.roll(ink, (-row, -column), (0, 1)) for row, column in _AROUND])
      sides, behind, ahead = around[::2], np.roll(around, 1, axis=0)[::2], around[1::2]
      # 1 where the ink around a pixel is in one piece.
      pieces = (~sides & (ahead | np.roll(sides, -1, axis=0))).sum(0)
      count = np.minimum((sides | behind).sum(0), (sides | ahead).sum(0))
      p = np.roll(around, -turn, axis=0)
      kept = (p[4] | p[5] | ~p[7]) & p[6]
      ink = ink & ~((pieces == 1) & (count >= 2) & (count <= 3) & ~kept)
    if ink.sum() == before:
      return ink[1:-1, 1:-1]


def traced(line: np.ndarray) -> list[np.ndarray]:
  """Paths along lines one pixel wide: from ends and crossings to such, and around closed ones.

  Args:
    line: bool `[height, width]`, as `thin` returns it.

  Returns:
    Pixels as x, y, int `[n, 2]` each; a lone pixel stands there twice.
  """
  pixels = {(int(row), int(column)) for row, column in np.argwhere(line)}
  neighbours = {pixel: _neighbours(pixel, pixels) for pixel in pixels}
  ends = {pixel for pixel in pixels if len(neighbours[pixel]) != 2}
  steps, paths = set(), []
  # Closed lines have no end: any pixel of theirs that is left begins one.
  for start in (*sorted(ends), *sorted(pixels)):
    free = [pixel for pixel in neighbours[start] if (start, pixel) not in steps]
    if start not in ends and len(free) < 2:
      continue
    for pixel in free:
      if (start, pixel) in steps:
        continue  # A closed path came back this way.
      path = [start, pixel]
      while len(neighbours[path[-1]]) == 2 and path[-1] != start:
        path.append(next(x for x in neighbours[path[-1]] if x != path[-2]))
      steps.update(itertools.pairwise(path))
      steps.update(itertools.pairwise(path[::-1]))
      paths.append(path)
  paths += [[pixel, pixel] for pixel in sorted(ends) if not neighbours[pixel]]
  return [np.array(path)[:, ::-1] for path in paths]


def _neighbours(pixel: tuple[int, int], pixels: set[tuple[int, int]]) -> list[tuple[int, int]]:
  """Those around a pixel; across a corner only where no side leads there."""
  (row, column), found = pixel, []
  for down, right in _AROUND:
    beside = down == 0 or right == 0
    round_a_corner = {(row + down, column), (row, column + right)} & pixels
    if (row + down, column + right) in pixels and (beside or not round_a_corner):
      found.append((row + down, column + right))
  return found


def simplified(path: np.ndarray, tolerance: float) -> np.ndarray:
  """Leaves out points of a path `[n, 2]` from which it then is no further than `tolerance`.

  Source: Ramer 1972; Douglas and Peucker 1973.
  """
  if len(path) < 3:
    return path
  first, last = path[0], path[-1]
  direction = last - first
  length = np.hypot(*direction)
  offset = path - first
  if length == 0:  # Closed.
    distance = np.hypot(*offset.T)
  else:
    distance = np.abs(direction[0] * offset[:, 1] - direction[1] * offset[:, 0]) / length
  furthest = int(distance.argmax())
  if distance[furthest] <= tolerance:
    return path[[0, -1]]
  halves = simplified(path[: furthest + 1], tolerance), simplified(path[furthest:], tolerance)
  return np.concatenate([halves[0][:-1], halves[1]])


def width(ink: np.ndarray, paths: Sequence[np.ndarray]) -> float:
  """How wide the lines are that have these paths in their middle, the median, in pixels."""
  depth = ndimage.distance_transform_edt(np.pad(ink, 1))[1:-1, 1:-1]
  x, y = np.concatenate(paths).T
  return float(2 * np.median(depth[y, x]) - 1)
