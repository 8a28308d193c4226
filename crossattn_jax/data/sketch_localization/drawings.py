"""Sources of drawings: random access to the drawings of each class."""

from collections.abc import Sequence
from typing import Protocol

import ml_collections
import numpy as np

from crossattn_jax.data import sources
from crossattn_jax.data.sketch_localization import rasters, scenes

SCENES = 'shape_scenes'
KINDS = (SCENES,)
# Drawings that are learnt from never show what is searched for in evaluation.
TRAINING = 'train'


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
  """Names of the classes that have drawings; `config` is `config.dataset.sketches`."""
  _check_name(config)
  return scenes.CLASS_NAMES


def open_source(
  config: ml_collections.ConfigDict, part: str, class_names: Sequence[str]
) -> SketchSource:
  """Opens a part of the drawings of some classes.

  Args:
    config: `config.dataset.sketches`.
    part: `TRAINING`, or 'valid' or 'test', as `config.eval_split` says.
    class_names: of the drawings.

  Raises:
    ValueError: there are no such drawings.
  """
  _check_name(config)
  return scenes.SceneDrawings(part, class_names)


def _check_name(config: ml_collections.ConfigDict) -> None:
  if sources.bare_name(config.name) not in KINDS:
    raise sources.unknown_dataset(config.name, KINDS, 'drawings')
