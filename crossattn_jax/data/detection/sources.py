"""Sources of detection examples: random access to encoded images and their objects by index."""

from collections.abc import Sequence
import os
import pathlib
from typing import Protocol, TypedDict

import ml_collections
import numpy as np

from crossattn_jax.data import image_ops, sources, splits
from crossattn_jax.data.detection import annotations, coco_folder, scenes

COCO_FOLDER = 'coco_folder'
# Folders of one's own: photos as cameras leave them.
FOLDERS = (COCO_FOLDER,)
# Names of the splits for training and for evaluation.
_SPLITS = {'shape_scenes': ('train', 'validation')}


class Example(TypedDict):
  """One example: an encoded image and its name for messages."""

  image: bytes
  key: str


class Source(Protocol):
  """Random access to the examples of one split; safe to read from threads, picklable.

  Attributes:
    class_names: through which labels count.
    category_ids: number of each class in results.
    image_ids: number of each image in results.
    num_objects: int64 `[images]`, of each image, crowds too.
    has_masks: whether every object has a mask.
  """

  class_names: Sequence[str]
  category_ids: Sequence[int]
  image_ids: Sequence[int]
  num_objects: np.ndarray
  has_masks: bool

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def annotations(self, index: int) -> annotations.Objects:
    """The objects of an image, in its own pixels."""

  def image_size(self, index: int) -> tuple[int, int]:
    """(height, width) of an image, without decoding it; (1, 1) where that fails."""


def open_source(config: ml_collections.ConfigDict, split: str) -> Source:
  """Opens a split of `config.dataset`; see `create_source`."""
  return create_source(
    config.name,
    split,
    config.data_dir,
    class_names=config.class_names,
    image_dir=config.image_dir,
    upright=image_ops.decoding_of(config, config.name in FOLDERS)['upright'],
  )


def create_source(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  class_names: Sequence[str] = (),
  image_dir: str | None = None,
  upright: bool = True,
) -> Source:
  """Opens one split of a data set.

  Args:
    name: `'shape_scenes'` (written on first use), with its configuration if wanted; or
      `'coco_folder'`, see `coco_folder.CocoFolder`.
    split: a split of it, or a share of one (`'train[:90%]'`).
    data_dir: folder of TFDS datasets (TFDS's own default if None), or that of the images.
    class_names: the classes that labels count through, usually those of the training split, to
      which those of a folder are mapped by name; by default it has its own.
    image_dir: of COCO files: the folder of their images, if it is not found.
    upright: whether images will be turned as their EXIF orientation says: sizes and objects are
      those of the turned image. COCO files say for which size their objects are.

  Raises:
    ValueError: there is no such data set or split, or what it says cannot be.
  """
  del upright  # Until there are folders that do not say the sizes of their images.
  if name == COCO_FOLDER:
    return coco_folder.CocoFolder(_checked_folder(name, data_dir), split, class_names, image_dir)
  if sources.bare_name(name) == 'shape_scenes':
    return scenes.SceneSource(name, split, data_dir)
  raise sources.unknown_dataset(name, [*_SPLITS, *FOLDERS], 'detection')


def complete_splits(config: ml_collections.ConfigDict) -> list[str]:
  """Sets the splits that `config.dataset` leaves open; see `splits.complete`."""
  if config.name in FOLDERS:
    found = coco_folder.find_splits(_checked_folder(config.name, config.data_dir))
    return splits.complete(config, list(found), coco_folder.WHOLE if len(found) == 1 else None)
  names = _SPLITS.get(sources.bare_name(config.name))
  if names is None:
    raise sources.unknown_dataset(config.name, [*_SPLITS, *FOLDERS], 'detection')
  for key, name in zip(('train_split', 'eval_split'), names, strict=True):
    if config[key] is None:
      config[key] = name
  return []


def _checked_folder(name: str, data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
  if data_dir is None:
    raise ValueError(f'{name!r} needs dataset.data_dir: the folder of its images and annotations')
  folder = pathlib.Path(data_dir)
  if not folder.is_dir():
    raise ValueError(f'dataset.data_dir={str(data_dir)!r} is no folder')
  return folder
