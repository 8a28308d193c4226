"""Lines that were drawn with a pen of any width, as the paths of its tip.

Needs NumPy, SciPy and Pillow only: exported models take this file with them.
"""

import collections
from collections.abc import Sequence
import itertools

import numpy as np
from PIL import Image, ImageChops
from scipy import ndimage

# Pictures are thinned in so many pixels along the longer side.
_PIXELS = 512
# Lines may be off by so much of the drawing's longer side after leaving out points.
_TOLERANCE = 1 / 255
# Least difference to the background, of 255, that is ink: more than JPEG's noise.
_FAINTEST = 40
# Ink is what differs from the background at least so much as the blackest of it, in parts.
_INK = 0.3
# What is wider than this part of the drawing is no line but an area.
_WIDEST = 0.1
# Photos have more than this part of their pixels between background and ink; drawings have few.
_MOST_BETWEEN = 0.2
# The neighbours of a pixel as (row, column), clockwise from above.
_AROUND = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def strokes_of(image: np.ndarray) -> tuple[list[np.ndarray], list[str], str]:
  """The strokes of a picture, whatever colours, size and width of lines it has.

  The middle of its lines is traced; of areas, their outlines are.

  Args:
    image: RGBA levels, uint8 `[height, width, 4]`.

  Returns:
    Points as x, y, `[n, 2]` of each stroke, in pixels of a picture of any size; what was done, a
    few words each; and why it may be no drawing at all, '' where nothing speaks against it.

  Raises:
    ValueError: the picture has one colour only.
  """
  picture, notes = _opaque(Image.fromarray(image))
  contrast, dark_on_light = _contrast(picture)
  notes.append('dark on light' if dark_on_light else 'light on dark')
  most = int(contrast.max(initial=0))
  if most < _FAINTEST:
    raise ValueError('it is empty: all of it has nearly the same colour')
  least = max(_INK * most, _FAINTEST)
  ink = contrast >= least
  between = np.mean((contrast > 0.5 * least) & (contrast < 0.8 * most))
  doubt = ''
  if between > _MOST_BETWEEN:
    doubt = (
      f'it looks like a photo: {between:.0%} of it is neither background nor line; draw the '
      'outline of what is sought instead'
    )
  rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
  ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  if ink.shape != contrast.shape:
    share = max(ink.shape[0] / contrast.shape[0], ink.shape[1] / contrast.shape[1])
    notes.append(f'cropped to the ink, {share:.0%} of it')
  resized = _resized(ink)
  scale = max(resized.shape) / max(ink.shape)
  ink, has_areas = _without_areas(resized)
  if has_areas:
    notes.append('outlines taken of filled areas')
  paths = traced(thin(ink))
  line_width = width(ink, paths)
  if line_width > 1.5 * scale:
    notes.append(f'lines thinned, which were {line_width / scale:.0f} pixels wide')
  # Where a picture is small, its pixels are stairs.
  tolerance = max(_TOLERANCE * max(ink.shape), 0.8 * scale)
  strokes = [
    simplified(path.astype(np.float64), tolerance) for path in _without_spurs(paths, line_width)
  ]
  return strokes, notes, doubt


def _opaque(image: Image.Image) -> tuple[Image.Image, list[str]]:
  """An RGBA picture as RGB, over a background that contrasts where it has none, and notes."""
  *colors, alpha = (np.asarray(band) for band in image.split())
  if alpha.min() == 255:
    return image.convert('RGB'), []
  if alpha.max() == 0:
    raise ValueError('it is empty: all of it is transparent')
  light = np.average(np.mean(colors, axis=0), weights=alpha) > 127.5
  under = 'black' if light else 'white'
  background = Image.new('RGBA', image.size, under)
  return Image.alpha_composite(background, image).convert('RGB'), [f'transparent, put on {under}']


def _contrast(picture: Image.Image) -> tuple[np.ndarray, bool]:
  """How much pixels differ from the border's colour, uint8 `[height, width]`; whether downwards."""
  pixels = np.asarray(picture)
  rim = max(1, round(0.02 * min(picture.size)))
  inside = np.zeros(pixels.shape[:2], bool)
  inside[rim:-rim, rim:-rim] = True
  background = np.median(pixels[~inside], axis=0).astype(np.uint8)
  plain = Image.new('RGB', picture.size, tuple(background.tolist()))
  contrast = np.asarray(ImageChops.difference(picture, plain)).max(axis=-1)
  ink = pixels[contrast >= contrast.max() / 2]
  return contrast, bool(ink.mean() <= background.mean())


def _resized(ink: np.ndarray) -> np.ndarray:
  """Ink in `_PIXELS` along the longer side; fine lines stay."""
  factor = max(ink.shape) // _PIXELS
  if factor > 1:
    height, width = (-(-side // factor) * factor for side in ink.shape)
    padded = np.pad(ink, [(0, height - ink.shape[0]), (0, width - ink.shape[1])])
    ink = padded.reshape(height // factor, factor, width // factor, factor).any(axis=(1, 3))
  scale = _PIXELS / max(ink.shape)
  size = [max(1, round(side * scale)) for side in ink.shape[::-1]]
  levels = Image.fromarray(ink.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
  return np.asarray(levels) > 85


def _without_areas(ink: np.ndarray) -> tuple[np.ndarray, bool]:
  """Leaves the outlines of what is too wide for a line, and says whether there is such."""
  widest = _WIDEST * max(ink.shape)
  # Beyond the picture is no ink.
  depth = ndimage.distance_transform_edt(np.pad(ink, 1))[1:-1, 1:-1]
  deep = depth > widest / 2
  if not deep.any():
    return ink, False
  area = ink & (ndimage.distance_transform_edt(~deep) <= widest)  # Corners are that far.
  inside = ndimage.binary_erosion(area, iterations=2)
  return ink & ~inside, True


def _without_spurs(paths: Sequence[np.ndarray], width: float) -> list[np.ndarray]:
  """Leaves out short ends at crossings, which wide lines have at their corners when thinned."""
  ends = collections.Counter(tuple(path[end]) for path in paths for end in (0, -1))
  loose = [[ends[tuple(path[end])] == 1 for end in (0, -1)] for path in paths]
  return [
    path
    for path, (first, last) in zip(paths, loose, strict=True)
    if len(path) > width or first == last
  ]


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
