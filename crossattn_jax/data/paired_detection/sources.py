"""Sources of paired detection: random access to encoded RGB and thermal images with objects."""

from collections.abc import Sequence
import os
import pathlib
from typing import Protocol, TypedDict

import ml_collections
import numpy as np

from crossattn_jax.data import image_ops, pairing, sources, splits
from crossattn_jax.data.detection import annotations
from crossattn_jax.data.paired_detection import folder, scenes

FOLDER, SCENES = 'pair_folder', 'shape_scenes'


class Example(TypedDict):
  """One pair: both encoded images, the pair's name, and a name of each image for messages."""

  key: str
  rgb: bytes
  thermal: bytes
  rgb_key: str
  thermal_key: str


class Source(Protocol):
  """Random access to the pairs of one split; safe to read from threads, picklable.

  Attributes:
    class_names: through which labels count.
    category_ids: number of each class in results.
    image_ids: number of each pair in results.
    num_objects: int64 `[pairs]`, of each pair, crowds too.
  """

  class_names: Sequence[str]
  category_ids: Sequence[int]
  image_ids: Sequence[int]
  num_objects: np.ndarray

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def key(self, index: int) -> str:
    """The name of a pair, without reading it."""

  def annotations(self, index: int) -> annotations.Objects:
    """The objects of a pair, in pixels of its images."""

  def image_size(self, index: int) -> tuple[int, int]:
    """(height, width) of a pair, without decoding it; (1, 1) where that fails."""


def open_source(config: ml_collections.ConfigDict, split: str) -> Source:
  """Opens a split of `config.dataset`; see `create_source`."""
  return create_source(
    config.name,
    split,
    config.data_dir,
    class_names=config.class_names,
    other_classes=config.other_classes,
    upright=image_ops.decoding_of(config, photos=config.name == FOLDER)['upright'],
  )


def create_source(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  class_names: Sequence[str] = (),
  other_classes: str = 'error',
  upright: bool = True,
) -> Source:
  """Opens one split of a data set.

  Args:
    name: `'shape_scenes'` (written on first use), with its configuration if wanted; or a folder of
      one's own, `'pair_folder'`, see `folder`.
    split: a split of it, or a share of one (`'train[:90%]'`).
    data_dir: folder of TFDS datasets (TFDS's own default if None), or that of the images.
    class_names: the classes that labels count through, usually those of the training split, to
      which those of the data set are mapped by name; by default it has its own.
    other_classes: of objects that have none of these: one of `classes.OTHERS`.
    upright: whether images of folders will be turned as their EXIF orientation says.

  Raises:
    ValueError: there is no such data set or split, or what it says cannot be.
  """
  if sources.bare_name(name) == SCENES:
    return scenes.PairedScenes(name, split, data_dir, class_names)
  return folder.PairFolder(_folder(name, data_dir), split, class_names, upright, other_classes)


def complete_splits(config: ml_collections.ConfigDict) -> list[str]:
  """Sets the splits that `config.dataset` leaves open; see `splits.complete`."""
  if sources.bare_name(config.name) == SCENES:
    return splits.complete(config, ('train', 'validation'))
  found = pairing.find_splits(_folder(config.name, config.data_dir))
  return splits.complete(config, found, pairing.WHOLE)


def _folder(name: str, data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
  """The folder of the data set `'pair_folder'`."""
  if name != FOLDER:
    raise sources.unknown_dataset(name, [SCENES, FOLDER], 'detection in pairs')
  return sources.checked_folder(name, data_dir, 'images and labels')
