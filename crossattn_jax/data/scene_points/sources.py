"""Sources of point clouds: random access to scenes, photographs of them and their labels."""

from collections.abc import Sequence
import pathlib
from typing import Protocol

import ml_collections
import numpy as np
from PIL import Image

from crossattn_jax.data import sources, splits
from crossattn_jax.data.scene_points import point_files

ROOMS, FOLDER = 'room_scenes', 'point_folder'
KNOWN = (ROOMS, 'scannet', 's3dis', FOLDER)

Scene = point_files.Scene


class PointSource(Protocol):
  """Random access to the scenes of one split; safe to read from threads, picklable.

  Attributes:
    class_names: through which labels count.
    keys: a name for each scene, which files can be called by: no '..', but '/' between folders.
  """

  class_names: Sequence[str]
  keys: Sequence[str]

  def __len__(self) -> int: ...

  def scene(self, index: int) -> Scene:
    """Reads a scene; raises `pipeline.UnreadableError`, which says the file and why."""

  def views(self, index: int) -> int:
    """Number of photographs of a scene."""

  def view(self, index: int, number: int) -> Image.Image:
    """A photograph of a scene, RGB of any size, in the order in which they were taken."""

  def tags(self, index: int) -> np.ndarray:
    """Bool `[classes]`: what is in a scene."""


class MemorySource:
  """Scenes in memory: for tests, notebooks and predictions."""

  def __init__(
    self,
    scenes: Sequence[Scene],
    class_names: Sequence[str],
    images: Sequence[Sequence[Image.Image]] | None = None,
    keys: Sequence[str] | None = None,
  ):
    self.class_names = tuple(class_names)
    self.keys = tuple(keys or (f'scene_{index:04d}' for index in range(len(scenes))))
    self._scenes, self._images = tuple(scenes), images or ((),) * len(scenes)

  def __len__(self) -> int:
    return len(self._scenes)

  def scene(self, index: int) -> Scene:
    """See `PointSource`."""
    return self._scenes[index]

  def views(self, index: int) -> int:
    """See `PointSource`."""
    return len(self._images[index])

  def view(self, index: int, number: int) -> Image.Image:
    """See `PointSource`."""
    return self._images[index][number]

  def tags(self, index: int) -> np.ndarray:
    """See `PointSource`."""
    return present(self._scenes[index].labels, len(self.class_names))


def present(labels: np.ndarray | None, num_classes: int) -> np.ndarray:
  """Which classes some labels hold: bool `[num_classes]`; raises ValueError if there are none."""
  if labels is None:
    raise ValueError('without labels of points nobody knows which classes a scene holds')
  return np.bincount(labels[labels >= 0], minlength=num_classes).astype(bool)


def open_source(config: ml_collections.ConfigDict, split: str) -> PointSource:
  """Opens a split of `config.dataset`.

  Raises:
    ValueError: there is no such data set or split, files are missing, or its classes are not those
      of `config.class_names`, where these are named.
  """
  source = _open(config, split)
  names = tuple(config.class_names)
  if names and names != tuple(source.class_names):
    changes = sources.class_changes(names, source.class_names)
    raise ValueError(
      f'dataset {config.name!r} has other classes than dataset.class_names: {changes}'
    )
  return source


def _open(config: ml_collections.ConfigDict, split: str) -> PointSource:
  # They are written on top of this module.
  from crossattn_jax.data.scene_points import folder, rooms, s3dis, scannet

  name = config.name
  if sources.bare_name(name) == ROOMS:
    return rooms.RoomSource(name, split, config.data_dir)
  root = _folder(config)
  if name == FOLDER or _is_prepared(root):
    return folder.open_split(root, split)
  return {'scannet': scannet.ScanNet, 's3dis': s3dis.S3DIS}[name](root, split)


def _folder(config: ml_collections.ConfigDict) -> pathlib.Path:
  """`config.data_dir`; raises ValueError where it is no folder, or the data set unknown."""
  name = config.name
  if name not in KNOWN:
    raise sources.unknown_dataset(name, KNOWN, 'point clouds')
  return sources.checked_folder(name, config.data_dir, 'scenes')


def _is_prepared(root: pathlib.Path) -> bool:
  """Whether a folder is what `prepare` wrote, or somebody's own in this form."""
  from crossattn_jax.data.scene_points import folder

  return (root / folder.CLASSES).is_file()


def _find_splits(config: ml_collections.ConfigDict) -> Sequence[str]:
  from crossattn_jax.data.scene_points import folder, s3dis, scannet

  if sources.bare_name(config.name) == ROOMS:
    return ('train', 'validation')
  root = _folder(config)
  if config.name == FOLDER or _is_prepared(root):
    return folder.find_splits(root)
  return {'scannet': scannet.SPLITS, 's3dis': tuple(s3dis.SPLITS)}[config.name]


def complete(config: ml_collections.ConfigDict) -> list[str]:
  """Sets the splits and classes that `config.dataset` leaves open.

  Returns:
    What was chosen, for the person at the terminal.

  Raises:
    ValueError: the data do not say it.
  """
  from crossattn_jax.data.scene_points import folder, scannet

  notes = []
  if None in (config.train_split, config.eval_split):
    notes += splits.complete(config, _find_splits(config), folder.WHOLE)
  if not config.class_names:
    config.class_names = tuple(_open(config, config.train_split).class_names)
    notes.append(f'{len(config.class_names)} classes: {sources.shown(config.class_names)}')
  if not config.class_values and tuple(config.class_names) == scannet.CLASS_NAMES:
    config.class_values = scannet.CLASS_VALUES
  return notes
