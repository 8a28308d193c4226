"""Folders of drawings, one for each class: Sketchy, and those of one's own.

`DIR/bear/*.png`, or `DIR/train/bear/*.png` and `DIR/valid/bear/*.png` where they are divided.
Otherwise ten drawings of each class, or half of them where there are less than twenty, are held out
for evaluation; which they are depends on hashes of their names alone.
"""

from collections.abc import Sequence
import functools
import pathlib

import numpy as np

from crossattn_jax.data import image_ops, pipeline, sources, splits
from crossattn_jax.data.sketch_localization import classes, rasters, reading

LAYOUTS = "a folder of drawings for each class, such as 'bear/1.png'"
TRAINING = 'train'
# What other parts are called, each as the others where it is missing.
_HELD_OUT = {'valid': ('valid', 'val', 'validation', 'test'), 'test': ('test', 'valid', 'val')}
PARTS = (TRAINING, *_HELD_OUT)
# Of each class, as with Sketchy in LocFormer, where they are drawn with this seed.
_COUNT, _SEED = 10, 14
# Drawings of one's own that are kept by a process: reading a picture takes a tenth of a second.
_KEPT = 4096

# Where Sketchy's classes are in what is released.
_SKETCHY = ('.', 'sketch/tx_000000000000', '256x256/sketch/tx_000000000000')


class OwnDrawings:
  """Pictures and SVG as people draw them, which become strokes: a `drawings.SketchSource`."""

  extensions: Sequence[str] = tuple(each for each in reading.EXTENSIONS if each != '.ndjson')

  def __init__(self, folder: pathlib.Path, part: str, class_names: Sequence[str]):
    """Lists the files of a part.

    Raises:
      ValueError: a class has no drawings.
    """
    self.class_names = tuple(class_names)
    self._folder, divided = _of_part(folder, part)
    found = self.find_classes(folder)
    own = self._own_classes(self._folder)
    self._files = []
    for name in class_names:
      expected = f'the folder {name!r} with files {", ".join(self.extensions)}'
      if classes.plain(name) not in own:
        raise classes.without_drawings(name, found, self._folder, expected)
      below = own[classes.plain(name)]
      files, _ = sources.find_files(below, self.extensions)
      files = [str(pathlib.Path(file).relative_to(self._folder)) for file in files]
      if not files:
        raise ValueError(f'{str(below)!r} has no drawings: expected {", ".join(self.extensions)}')
      if not divided:
        files = _held(files, part, below)
      self._files.append(files)
    self.counts = np.array([len(files) for files in self._files])

  @classmethod
  def find_classes(cls, folder: pathlib.Path) -> tuple[str, ...]:
    """Plain names of the classes that have a folder."""
    return tuple(sorted(cls._own_classes(_of_part(folder, TRAINING)[0])))

  @classmethod
  def _own_classes(cls, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of classes, by their plain names."""
    return {
      cls.renamed(classes.plain(path.name)): path
      for path in sorted(folder.iterdir())
      if path.is_dir() and not sources.is_hidden(path.name)
    }

  @staticmethod
  def renamed(name: str) -> str:
    """What a class is called, by the plain name of its folder."""
    return name

  def key(self, label: int, number: int) -> str:
    """See `drawings.SketchSource`."""
    return repr(str(self._folder / self._files[label][number]))

  def drawing(self, label: int, number: int) -> rasters.Drawing:
    """See `drawings.SketchSource`.

    Raises:
      UnreadableError: the file is no drawing.
    """
    return self._read(self._folder / self._files[label][number])

  def _read(self, path: pathlib.Path) -> rasters.Drawing:
    return _strokes(path)


class SketchyDrawings(OwnDrawings):
  """The pictures of Sketchy, which are shown as they are: a `drawings.SketchSource`."""

  extensions = sources.IMAGE_EXTENSIONS

  def __init__(self, folder: pathlib.Path, part: str, class_names: Sequence[str]):
    """Lists the files of a part; `folder` may be that of all of Sketchy."""
    super().__init__(self._root(folder), part, class_names)

  @classmethod
  def find_classes(cls, folder: pathlib.Path) -> tuple[str, ...]:
    """Plain names of the classes that have a folder."""
    return super().find_classes(cls._root(folder))

  @staticmethod
  def _root(folder: pathlib.Path) -> pathlib.Path:
    return next((folder / part for part in reversed(_SKETCHY) if (folder / part).is_dir()), folder)

  @staticmethod
  def renamed(name: str) -> str:
    """COCO's name of a class."""
    return classes.SKETCHY_NAMES.get(name, name)

  def _read(self, path: pathlib.Path) -> np.ndarray:
    try:
      return np.asarray(image_ops.decode(path.read_bytes(), 1))
    except pipeline.UnreadableError as error:
      raise pipeline.UnreadableError(f'{str(path)!r}: {error}') from error


@functools.lru_cache(maxsize=_KEPT)
def _strokes(path: pathlib.Path) -> rasters.Drawing:
  try:
    drawing = reading.read(path)
  except ValueError as error:
    raise pipeline.UnreadableError(str(error)) from error
  if drawing.doubt:
    sources.say_once(f'{str(path)!r}: {drawing.doubt}')
  return drawing.strokes


def _of_part(folder: pathlib.Path, part: str) -> tuple[pathlib.Path, bool]:
  """The folder of a part, and whether there are such; otherwise all drawings are in one."""
  if not (folder / TRAINING).is_dir():
    return folder, False
  names = (TRAINING,) if part == TRAINING else _HELD_OUT[part]
  found = [folder / name for name in names if (folder / name).is_dir()]
  if not found:
    raise ValueError(
      f'{str(folder)!r} has a folder {TRAINING!r}, but none of {sources.shown(names)}: add one, or '
      f'leave the folders of the classes in {str(folder)!r} itself'
    )
  return found[0], True


def _held(files: Sequence[str], part: str, folder: pathlib.Path) -> list[str]:
  """The files of a class that are of a part, in their order."""
  count = min(_COUNT, len(files) // 2)
  if not count:
    raise ValueError(
      f'{str(folder)!r} has one drawing, {files[0]!r}: expected two at least, to learn from one '
      'and to ask with the other'
    )
  held = set(sorted(files, key=lambda name: splits.position(f'{_SEED}/{name}'))[:count])
  return [name for name in files if (name in held) == (part != TRAINING)]
