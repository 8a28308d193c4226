"""S3DIS as it is released: rooms of six areas of buildings, a text file for each object.

DIR/Area_1/conferenceRoom_1/Annotations/chair_1.txt    x y z red green blue in each line
DIR/Area_1/conferenceRoom_1/conferenceRoom_1.txt       the same of all, where there are no objects
DIR/Area_1/conferenceRoom_1/images/*                   photographs, if there are any
"""

import functools
import os
import pathlib

import numpy as np
from PIL import Image

from crossattn_jax import config_errors
from crossattn_jax.data import pipeline
from crossattn_jax.data import sources as common
from crossattn_jax.data.scene_points import folder, sources

CLASS_NAMES = (
  'ceiling',
  'floor',
  'wall',
  'beam',
  'column',
  'window',
  'door',
  'table',
  'chair',
  'sofa',
  'bookcase',
  'board',
  'clutter',
)
# Areas of each split; 'Area_3' alone is one too.
SPLITS = {'train': (1, 2, 3, 4, 6), 'test': (5,)}


class S3DIS:
  """A split of S3DIS.

  Attributes:
    class_names: the 13 classes.
    keys: 'Area_1/conferenceRoom_1' and so on.
  """

  class_names = CLASS_NAMES

  def __init__(self, data_dir: str | os.PathLike[str], split: str):
    """Lists the rooms.

    Raises:
      ValueError: there is no such split, areas are missing, or rooms have no points.
    """
    self._root = pathlib.Path(data_dir)
    areas = [f'Area_{number}' for number in SPLITS.get(split, ())] or [split]
    if not set(areas) <= {f'Area_{number}' for number in range(1, 7)}:
      known = (*SPLITS, 'Area_1 ... Area_6')
      raise config_errors.UnknownName(
        f's3dis has no split {split!r}; it has {common.shown(known)}', split, known
      )
    missing = [area for area in areas if not (self._root / area).is_dir()]
    if missing:
      raise ValueError(
        f'split {split!r} needs {common.shown(areas)} in {str(self._root)!r}; there is no '
        f'{common.shown(missing)}'
      )
    self.keys = tuple(
      f'{area}/{room.name}'
      for area in areas
      for room in sorted((self._root / area).iterdir())
      if room.is_dir() and not common.is_hidden(room.name)
    )
    empty = [key for key in self.keys if not (self._objects(key) or self._whole(key).is_file())]
    if empty or not self.keys:
      room = self._root / (empty[0] if empty else f'{areas[0]}/ROOM')
      raise ValueError(
        f'{len(empty)} of the {len(self.keys)} rooms of {split!r} have no points: expected '
        f'{str(room)!r}/Annotations/*.txt'
      )

  def _objects(self, key: str) -> list[str]:
    return common.find_files(self._root / key / 'Annotations', ('.txt',))[0]

  def _whole(self, key: str) -> pathlib.Path:
    return self._root / key / f'{pathlib.Path(key).name}.txt'

  def __len__(self) -> int:
    return len(self.keys)

  def scene(self, index: int) -> sources.Scene:
    """See `PointSource`; objects are in the order of the names of their files."""
    key = self.keys[index]
    objects = self._objects(key)
    tables = [_read_table(path) for path in objects or [str(self._whole(key))]]
    table = np.concatenate(tables)
    labels = None
    if objects:
      names = [pathlib.Path(path).stem.rsplit('_', 1)[0] for path in objects]
      # What is none of the classes, stairs, counts as clutter.
      known = [CLASS_NAMES.index(name if name in CLASS_NAMES else 'clutter') for name in names]
      labels = np.repeat(np.array(known, np.int32), list(map(len, tables)))
    colors = np.clip(table[:, 3:], 0, 255).astype(np.uint8)
    return sources.Scene(table[:, :3].astype(np.float32), colors, labels)

  def views(self, index: int) -> int:
    """See `PointSource`."""
    return len(self._images(index))

  def view(self, index: int, number: int) -> Image.Image:
    """See `PointSource`."""
    return folder.read_image(self._images(index)[number])

  def tags(self, index: int) -> np.ndarray:
    """See `PointSource`."""
    return sources.present(self.scene(index).labels, len(CLASS_NAMES))

  @functools.lru_cache(4096)  # noqa: B019  (a source lives as long as its run)
  def _images(self, index: int) -> tuple[str, ...]:
    return tuple(common.find_files(self._root / self.keys[index] / folder.IMAGES)[0])


def _read_table(path: str) -> np.ndarray:
  """`[points, 6]` numbers of a text file; raises `UnreadableError`, which names the line."""
  try:
    table = np.loadtxt(path, np.float64, ndmin=2)
  except (OSError, ValueError) as error:
    raise pipeline.UnreadableError(f'{path!r}: {error}') from error
  if table.shape[1] != 6 or not len(table):
    raise pipeline.UnreadableError(
      f'{path!r} has {table.shape[1]} numbers in a line; expected x y z red green blue'
    )
  return table
