"""Drawings as people have them: pictures of any paint program, SVG, and strokes of QuickDraw.

Whatever a file holds becomes strokes, as QuickDraw's simplified drawings are: so all drawings are
drawn alike, those that a model learns from and those that it is asked with.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np

from crossattn_jax.data import decoding, sources
from crossattn_jax.data.sketch_localization import thinning
from crossattn_jax.geometry import strokes as strokes_lib

EXTENSIONS = (*sources.IMAGE_EXTENSIONS, '.svg', '.json', '.ndjson', '.npy')

# The longer side of a drawing, which begins at 0, 0: QuickDraw's.
EXTENT = 255.0


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
  whole = sources.located(given)
  if not whole.is_dir():
    several = [str(sources.located(path.strip())) for path in given.split(',')]
    return [str(whole)] if whole.exists() else several
  paths, _ = sources.find_files(whole, EXTENSIONS)
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
  # Pillow raises the first ones, what is nested without end the last one.
  except (ValueError, OSError, SyntaxError, RecursionError) as error:
    raise ValueError(f'cannot read the drawing {path}: {error}') from error


def _read(file: pathlib.Path, number: int) -> Drawing:
  kind = file.suffix.lower()
  if kind == '.svg':
    from crossattn_jax.data.sketch_localization import svg  # Few runs need it.

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
  return Drawing(strokes_lib.fit(strokes_lib.with_dots(strokes), EXTENT), notes)


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
  """A drawing of a picture, RGBA levels `[height, width, 4]`; see `thinning.strokes_of`.

  Raises:
    ValueError: the picture has one colour only.
  """
  strokes, notes, doubt = thinning.strokes_of(image)
  return dataclasses.replace(from_strokes(strokes, notes), doubt=doubt)
