"""Sources of drawings: random access to the drawings of each class."""

from collections.abc import Callable, Sequence
import pathlib
from typing import Protocol

import ml_collections
import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data import sources
from crossattn_jax.data.sketch_localization import folders, quickdraw, rasters, scenes

QUICKDRAW, SKETCHY, FOLDER, SCENES = 'quickdraw', 'sketchy', 'sketch_folder', 'shape_scenes'
# Drawings that are learnt from are never asked with.
TRAINING, *HELD_OUT = quickdraw.PARTS

# What finds the classes in a folder, and what opens a part of their drawings.
_KINDS = {
  QUICKDRAW: (quickdraw.find_classes, quickdraw.open_source, quickdraw.LAYOUTS),
  SKETCHY: (folders.SketchyDrawings.find_classes, folders.SketchyDrawings, folders.LAYOUTS),
  FOLDER: (folders.OwnDrawings.find_classes, folders.OwnDrawings, folders.LAYOUTS),
}


class SketchSource(Protocol):
  """Random access to the drawings of one part; safe to read from threads, picklable.

  Attributes:
    class_names: of the drawings, through which labels count.
    counts: int64 `[classes]`, drawings of each class.
  """

  class_names: Sequence[str]
  counts: np.ndarray

  def drawing(self, label: int, number: int) -> rasters.Drawing:
    """A drawing of a class: strokes, or an image of black lines on white."""

  def key(self, label: int, number: int) -> str:
    """What messages call a drawing."""


def find_classes(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Plain names of the classes that have drawings; `config` is `config.dataset.sketches`."""
  if _is_scenes(config):
    return scenes.CLASS_NAMES
  find, _, layouts = _kind(config)
  folder = _folder(config)
  if not (found := find(folder)):
    raise ValueError(f'{str(folder)!r} has no drawings; expected {layouts}')
  return found


def open_source(
  config: ml_collections.ConfigDict, part: str, class_names: Sequence[str]
) -> SketchSource:
  """Opens a part of the drawings of some classes.

  Args:
    config: `config.dataset.sketches`, whose `name` is `'quickdraw'`, files of each class,
      simplified or stroke-3 (see `quickdraw`); `'sketchy'`, as it is released;
      `'sketch_folder'`, a folder of one's own of each class (see `folders`); or `'shape_scenes'`,
      which are made.
    part: `TRAINING`, or one of `HELD_OUT`.
    class_names: of the drawings.

  Raises:
    ValueError: there are no such drawings.
  """
  if _is_scenes(config):
    return scenes.SceneDrawings(part, class_names)
  _, create, _ = _kind(config)
  return create(_folder(config), part, class_names)


def _is_scenes(config: ml_collections.ConfigDict) -> bool:
  return sources.bare_name(config.name) == SCENES


def _kind(config: ml_collections.ConfigDict) -> tuple[Callable, Callable, str]:
  known = [*_KINDS, SCENES]
  if config.name not in _KINDS:
    raise config_errors.UnknownName(
      f'unknown dataset.sketches.name={config.name!r}; '
      f'{config_errors.near_names(config.name, known)}known are {sources.shown(known)}',
      config.name,
      known,
    )
  return _KINDS[config.name]


def _folder(config: ml_collections.ConfigDict) -> pathlib.Path:
  *_, layouts = _kind(config)
  if config.data_dir is None:
    raise ValueError(
      f'dataset.sketches.name={config.name!r} needs dataset.sketches.data_dir: a folder with '
      f'{layouts}'
    )
  folder = pathlib.Path(config.data_dir)
  if not folder.is_dir():
    raise ValueError(f'dataset.sketches.data_dir={config.data_dir!r} is no folder')
  return folder
