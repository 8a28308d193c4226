"""Drawings as people have them: pictures of any paint program, SVG, and strokes of QuickDraw.

Whatever a file holds becomes strokes, as QuickDraw's simplified drawings are: so all drawings are
drawn alike, those that a model learns from and those that it is asked with.
"""

import collections
from collections.abc import Sequence
import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np
from PIL import Image, ImageChops
from scipy import ndimage

from crossattn_jax.data import decoding, sources
from crossattn_jax.data.sketch_localization import svg, thinning
from crossattn_jax.geometry import strokes as strokes_lib

EXTENSIONS = (*sources.IMAGE_EXTENSIONS, '.svg', '.json', '.ndjson', '.npy')

# The longer side of a drawing, which begins at 0, 0: QuickDraw's.
EXTENT = 255.0
# Pictures are thinned in so many pixels along the longer side.
_PIXELS = 512
# Lines may be off by so much after leaving out points, of `EXTENT`.
_TOLERANCE = 1.0
# Least difference to the background, of 255, that is ink: more than JPEG's noise.
_FAINTEST = 40
# Ink is what differs from the background at least so much as the blackest of it, in parts.
_INK = 0.3
# What is wider than this part of the drawing is no line but an area.
_WIDEST = 0.1
# Photos have more than this part of their pixels between background and ink; drawings have few.
_MOST_BETWEEN = 0.2


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A drawing that was read.

  Attributes:
    strokes: see `geometry.strokes`; from 0 to `EXTENT` along the longer side of the drawing.
    notes: what was done to it, a few words each.
    doubt: why it may be no drawing at all; '' where nothing speaks against it.
  """

  strokes: strokes_lib.Strokes
  notes: Sequence[str] = ()
  doubt: str = ''


def find(given: str) -> list[str]:
  """Paths of drawings: one, several with commas between them, or all below a folder.

  Raises:
    FileNotFoundError: a folder has none.
  """
  if not pathlib.Path(given).is_dir():
    return [given] if pathlib.Path(given).exists() else given.split(',')
  paths, _ = sources.find_files(given, EXTENSIONS)
  if not paths:
    raise FileNotFoundError(
      f'{given}: there is no drawing ({", ".join(EXTENSIONS)}) in it or below'
    )
  return paths


def read(path: str | pathlib.Path) -> Drawing:
  """Reads a drawing.

  Args:
    path: of an image in any format that Pillow reads; of an SVG; of QuickDraw's strokes as JSON or
      ndjson, of which `FILE.ndjson:7` is drawing 7 of the file, from 1; of stroke-3 as `.npy`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no drawing, has no line, or has parts that cannot be read as lines.
  """
  name, number = str(path), 1
  if counted := re.fullmatch(r'(.+\.ndjson):(\d+)', name):
    name, number = counted[1], int(counted[2])
  file = pathlib.Path(name)
  if not file.exists():
    raise FileNotFoundError(f'{name} does not exist; expected a drawing: {", ".join(EXTENSIONS)}')
  try:
    return _read(file, number)
  except (ValueError, OSError, SyntaxError) as error:  # Pillow raises all of these.
    raise ValueError(f'cannot read the drawing {path}: {error}') from error


def _read(file: pathlib.Path, number: int) -> Drawing:
  kind = file.suffix.lower()
  if kind == '.svg':
    return from_strokes(svg.read(file.read_bytes()), ('lines of an SVG',))
  if kind == '.npy':
    rows = np.load(file, allow_pickle=False)
    return from_strokes(strokes_lib.from_stroke3(rows), ('stroke-3',))
  if kind in ('.json', '.ndjson'):
    return _from_json(file.read_text(), kind == '.ndjson', number)
  return from_image(file.read_bytes())


def from_strokes(strokes: strokes_lib.Strokes, notes: Sequence[str] = ()) -> Drawing:
  """A drawing of strokes in any frame, which are brought into QuickDraw's.

  Raises:
    ValueError: there is no line, or a point that is not finite.
  """
  strokes = [stroke for stroke in strokes if len(stroke)]
  if not strokes:
    raise ValueError('it is empty: it has no line')
  points = np.concatenate(strokes)
  if not np.isfinite(points).all():
    raise ValueError('some of its points are not finite')
  if not np.ptp(points, axis=0).any():
    raise ValueError('it is empty: all of it is a single point')
  return Drawing(strokes_lib.fit(strokes, EXTENT), notes)


def from_quickdraw(drawing: Any) -> Drawing:
  """A drawing in the form of QuickDraw's JSON: a list `[[x, ...], [y, ...]]` for each stroke.

  Times, the third list of raw drawings, are not used. Those of one drawing may stand in an object
  as its 'drawing'.

  Raises:
    ValueError: it is not of that form, or there is no line.
  """
  if isinstance(drawing, dict):
    drawing = drawing.get('drawing')
  if isinstance(drawing, list):
    drawing = [stroke[:2] if isinstance(stroke, list) else stroke for stroke in drawing]
  return from_strokes(strokes_lib.from_simplified(drawing), ('strokes of QuickDraw',))


def _from_json(text: str, lines: bool, number: int) -> Drawing:
  """One of the drawings of ndjson, or the one of JSON."""
  drawings = [line for line in text.splitlines() if line.strip()] if lines else [text]
  if not drawings:
    raise ValueError('the file is empty')
  if not 1 <= number <= len(drawings):
    raise ValueError(f'there is no drawing {number}; the file has {len(drawings)}, from 1')
  try:
    parsed = json.loads(drawings[number - 1])
  except json.JSONDecodeError as error:
    raise ValueError(f'it is no JSON: {error}') from error
  drawing = from_quickdraw(parsed)
  if len(drawings) == 1:
    return drawing
  note = f'drawing {number} of {len(drawings)} in the file (FILE:NUMBER takes another)'
  return dataclasses.replace(drawing, notes=(*drawing.notes, note))


def from_image(data: bytes) -> Drawing:
  """A drawing of an encoded picture; see `from_pixels`."""
  return from_pixels(np.asarray(decoding.decode(data, 'RGBA', upright=True)))


def from_pixels(image: np.ndarray) -> Drawing:
  """A drawing of a picture: whatever colours, size and width of lines it has.

  The middle of its lines is traced; of areas, their outlines are.

  Args:
    image: RGBA levels, uint8 `[height, width, 4]`.

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
  paths = thinning.traced(thinning.thin(ink))
  width = thinning.width(ink, paths)
  if width > 1.5 * scale:
    notes.append(f'lines thinned, which were {width / scale:.0f} pixels wide')
  # Where a picture is small, its pixels are stairs.
  tolerance = max(_TOLERANCE * max(ink.shape) / EXTENT, 0.8 * scale)
  strokes = [
    thinning.simplified(path.astype(np.float64), tolerance) for path in _without_spurs(paths, width)
  ]
  return dataclasses.replace(from_strokes(strokes, notes), doubt=doubt)


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
