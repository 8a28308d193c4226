"""Drawings of QuickDraw as people have them: simplified ones (`.ndjson`), or stroke-3 (`.npy`).

There are some hundred thousand of each class: they stay in their files, and are read when they are
asked for.

`bear.ndjson` has a line of JSON for each drawing, `{"key_id": ..., "drawing": [[[x, x, ...], [y,
y, ...]], ...]}`. Where its lines begin is written beside it, once: `bear.index.npy`. Eight tenths
of the drawings, by a hash of their keys alone, are 'train', one is 'valid', and one is 'test'.

Of stroke-3 each part has files of its own. `bear.train.strokes.npy` are the steps of all drawings,
int16 `[steps, 3]`, and `bear.train.ptr.npy` says where each begins, and where the last one ends.
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import pathlib
import re
import uuid

from absl import logging
import numpy as np

from crossattn_jax.data import mapped_array, pipeline, sources, splits
from crossattn_jax.data.sketch_localization import classes
from crossattn_jax.geometry import strokes as strokes_lib

LAYOUTS = "'bear.ndjson', or 'bear.train.ptr.npy' and 'bear.train.strokes.npy', for each class"
_SIMPLIFIED, _STEPS, _STARTS, _INDEX = '.ndjson', '.strokes.npy', '.ptr.npy', '.index.npy'
# As a browser saves them.
_PREFIX = 'full_simplified_'
_KEY = re.compile(rb'"key_id"\s*:\s*"?([^",}]+)')

PARTS = ('train', 'valid', 'test')
# Where the first ends, and the second.
_SHARES = (0.8, 0.9)


def find_classes(folder: pathlib.Path) -> tuple[str, ...]:
  """Names of the classes that a folder has drawings of, in their order."""
  return tuple(sorted({*_files(folder, _SIMPLIFIED), *_stroke3_classes(folder)}))


def open_source(
  folder: pathlib.Path, part: str, class_names: Sequence[str]
) -> 'SimplifiedDrawings | Stroke3Drawings':
  """Opens a part of the drawings of some classes.

  Raises:
    ValueError: a class has no file, or none that can be read.
  """
  kind = Stroke3Drawings if _stroke3_classes(folder) else SimplifiedDrawings
  return kind(folder, part, class_names)


class SimplifiedDrawings:
  """Lines of `.ndjson` files: a `drawings.SketchSource`."""

  def __init__(self, folder: pathlib.Path, part: str, class_names: Sequence[str]):
    """Finds where the lines begin; see `open_source`."""
    self.class_names = tuple(class_names)
    files = _files(folder, _SIMPLIFIED)
    self._paths = [_file_of(name, files, folder, f'{name}{_SIMPLIFIED}') for name in class_names]
    self._indices = [_index(path) for path in self._paths]
    place = PARTS.index(part)
    # Of every class, the rows of its index that are of this part.
    self._spans = [
      np.searchsorted(index.array[:, 0], (place, place + 1)).tolist() for index in self._indices
    ]
    self.counts = np.array([stop - start for start, stop in self._spans])
    for path, count, index in zip(self._paths, self.counts, self._indices, strict=True):
      if not count:
        raise ValueError(
          f'none of the {len(index.array) - 1} drawings of {str(path)!r} is in the part {part!r}: '
          'add some'
        )

  def _start(self, label: int, number: int) -> int:
    """Where the line of a drawing begins, in bytes."""
    return int(self._indices[label].array[self._spans[label][0] + number, 1])

  def key(self, label: int, number: int) -> str:
    """See `drawings.SketchSource`."""
    path = self._paths[label]
    with path.open('rb') as file:
      before = file.read(self._start(label, number))
    line = 1 + before.count(b'\n')
    return f'{str(path)!r}, line {line}'

  def drawing(self, label: int, number: int) -> list[np.ndarray]:
    """See `drawings.SketchSource`.

    Raises:
      UnreadableError: the line is no drawing; the message names file and line.
    """
    with self._paths[label].open('rb') as file:
      file.seek(self._start(label, number))
      line = file.readline()
    try:
      return strokes_lib.from_simplified(json.loads(line)['drawing'])
    except json.JSONDecodeError as error:
      problem = f'is not JSON: {error.msg}'
    except (KeyError, TypeError):
      problem = "has no 'drawing'"
    except ValueError as error:
      problem = f'has {error}'
    raise pipeline.UnreadableError(f'{self.key(label, number)} {problem}')


class Stroke3Drawings:
  """Steps in `.npy` files: a `drawings.SketchSource`."""

  def __init__(self, folder: pathlib.Path, part: str, class_names: Sequence[str]):
    """Opens the files; see `open_source`."""
    self.class_names = tuple(class_names)
    starts, steps = (_files(folder, f'.{part}{ending}') for ending in (_STARTS, _STEPS))
    self._starts, self._steps, counts = [], [], []
    for name in class_names:
      path = _file_of(name, starts, folder, f'{name}.{part}{_STARTS}')
      first = mapped_array.MappedArray(path)
      path = _file_of(name, steps, folder, f'{name}.{part}{_STEPS}')
      rows = mapped_array.MappedArray(path)
      _check_stroke3(first, rows)
      self._starts.append(first)
      self._steps.append(rows)
      counts.append(len(first.array) - 1)
    self.counts = np.array(counts)

  def key(self, label: int, number: int) -> str:
    """See `drawings.SketchSource`."""
    return f'{str(self._steps[label].path)!r}, drawing {number}'

  def drawing(self, label: int, number: int) -> list[np.ndarray]:
    """See `drawings.SketchSource`.

    Raises:
      UnreadableError: it has no steps.
    """
    start, stop = self._starts[label].array[number : number + 2].tolist()
    try:
      return strokes_lib.from_stroke3(np.array(self._steps[label].array[start:stop]))
    except ValueError as error:
      raise pipeline.UnreadableError(f'{self.key(label, number)} has {error}') from error


def _check_stroke3(starts: mapped_array.MappedArray, steps: mapped_array.MappedArray) -> None:
  """Refuses arrays of other shapes, and such as do not belong together."""
  name, shape = str(steps.path), steps.array.shape
  if len(shape) != 2 or shape[1] != 3:
    raise ValueError(f'{name!r} is {list(shape)}; expected [steps, 3] of dx, dy, pen lifted')
  first = starts.array
  if first.ndim != 1 or first.dtype.kind not in 'iu' or len(first) < 2:
    raise ValueError(
      f'{str(starts.path)!r} is {first.dtype} {list(first.shape)}; expected where each drawing '
      'begins and the last one ends, whole numbers [drawings + 1]'
    )
  if first[0] != 0 or first[-1] != shape[0]:
    raise ValueError(
      f'{str(starts.path)!r} is of steps {first[0]} to {first[-1]}, but {name!r} has {shape[0]}: '
      'they do not belong together'
    )


def _files(folder: pathlib.Path, ending: str) -> dict[str, pathlib.Path]:
  """The files with an ending, by the class that they are called after."""
  found = {}
  for path in sorted(folder.glob(f'*{ending}')):
    if not sources.is_hidden(path.name):
      found[classes.plain(path.name.removesuffix(ending).removeprefix(_PREFIX))] = path
  return found


def _stroke3_classes(folder: pathlib.Path) -> set[str]:
  return {name for part in PARTS for name in _files(folder, f'.{part}{_STARTS}')}


def _file_of(
  name: str, files: Mapping[str, pathlib.Path], folder: pathlib.Path, expected: str
) -> pathlib.Path:
  path = files.get(classes.plain(name))
  if path is None:
    raise classes.without_drawings(name, files, folder, repr(expected))
  return path


@dataclasses.dataclass
class _InMemory:
  """As `MappedArray`."""

  array: np.ndarray


def _index(path: pathlib.Path) -> mapped_array.MappedArray | _InMemory:
  """Part and first byte of each line, int64 `[lines + 1, 2]`, sorted; then the file's end.

  It is written beside the file, where that is allowed, unless it is there.

  Raises:
    ValueError: a line is no JSON object, or there is none.
  """
  file, state = path.with_name(path.stem + _INDEX), path.stat()
  if file.exists() and file.stat().st_mtime >= state.st_mtime:
    index = mapped_array.MappedArray(file)
    if index.array[-1].tolist() == [len(PARTS), state.st_size]:
      return index
  logging.info('looking for the drawings in %s', path)
  rows = np.array([*_scan(path), (len(PARTS), state.st_size)], np.int64)
  if len(rows) == 1:
    raise ValueError(f'{str(path)!r} is empty; expected a line of JSON for each drawing')
  rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
  try:
    # Of several processes each writes its own, and all are the same.
    written = file.with_name(f'.{uuid.uuid4().hex}{_INDEX}')
    np.save(written, rows)
    written.replace(file)
  except OSError as error:
    sources.say_once(f'{str(file)!r} cannot be written ({error.strerror}): every run makes it anew')
    return _InMemory(rows)
  return mapped_array.MappedArray(file)


def _scan(path: pathlib.Path) -> Iterator[tuple[int, int]]:
  """Part and first byte of each line of a file."""
  start = 0
  with path.open('rb') as file:
    for number, line in enumerate(file, 1):
      stripped = line.strip()
      if stripped:
        if not (stripped.startswith(b'{') and stripped.endswith(b'}')):
          raise ValueError(
            f'{str(path)!r}, line {number} is no JSON object: {stripped[:40]!r}...; if the file '
            'ends there, load it again, otherwise remove the line'
          )
        key = _KEY.search(stripped)
        name = (key[1] if key else stripped).decode('latin-1')
        yield bisect.bisect(_SHARES, splits.position(name)), start
      start += len(line)
