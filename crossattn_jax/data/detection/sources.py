"""Sources of detection examples: random access to encoded images and their objects by index."""

from collections.abc import Sequence
import contextlib
import os
import pathlib
from typing import Protocol, TypedDict

import ml_collections
import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data import image_ops, sources, splits
from crossattn_jax.data.detection import (
  annotations,
  coco_folder,
  scenes,
  tfds_source,
  voc_folder,
  yolo_folder,
)

# Folders of one's own: photos as cameras leave them. The first finds out which it is.
DETECTION_FOLDER = 'detection_folder'
COCO_FOLDER, YOLO_FOLDER, VOC_FOLDER = 'coco_folder', 'yolo_folder', 'voc_folder'
FOLDERS = (DETECTION_FOLDER, COCO_FOLDER, YOLO_FOLDER, VOC_FOLDER)
COCO, SCENES = 'coco', 'shape_scenes'


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
    masks_missing: what has no mask, for messages; None where every object has one.
  """

  class_names: Sequence[str]
  category_ids: Sequence[int]
  image_ids: Sequence[int]
  num_objects: np.ndarray
  masks_missing: str | None

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def annotations(self, index: int) -> annotations.Objects:
    """The objects of an image, in its own pixels."""

  def image_size(self, index: int) -> tuple[int, int]:
    """(height, width) of an image, without decoding it; (1, 1) where that fails."""


def open_source(config: ml_collections.ConfigDict, split: str) -> Source:
  """Opens a split of `config.dataset`; see `create_source`.

  Raises:
    ValueError: as `create_source`, or masks are to be learnt, and an object has none.
  """
  source = create_source(
    config.name,
    split,
    config.data_dir,
    class_names=config.class_names,
    image_dir=config.image_dir,
    other_classes=config.other_classes,
    upright=image_ops.decoding_of(config, config.name in FOLDERS)['upright'],
  )
  if config.masks and source.masks_missing is not None:
    raise ValueError(
      f'split {split!r} of dataset {config.name!r} has not a mask of every object: '
      f'{source.masks_missing}; add them, or set dataset.masks=False and take a model without '
      "masks, such as 'crossformer_small+faster_rcnn'"
    )
  return source


def create_source(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  class_names: Sequence[str] = (),
  image_dir: str | None = None,
  other_classes: str = 'error',
  upright: bool = True,
) -> Source:
  """Opens one split of a data set.

  Args:
    name: `'shape_scenes'` (written on first use), with its configuration if wanted; a folder of
      one's own, `'detection_folder'`, or one that is said to be a `'coco_folder'`, a
      `'yolo_folder'` or a `'voc_folder'` (see the modules of these names); `'coco'`, a folder as
      it is released, or else `'coco/2017'` of TFDS; or any data set of TFDS with boxes that has
      been prepared, such as `'voc/2007'`.
    split: a split of it, or a share of one (`'train[:90%]'`).
    data_dir: folder of TFDS datasets (TFDS's own default if None), or that of the images.
    class_names: the classes that labels count through, usually those of the training split, to
      which those of the data set are mapped by name; by default it has its own.
    image_dir: of COCO files: the folder of their images, if it is not found.
    other_classes: of objects that have none of these: one of `classes.OTHERS`.
    upright: whether images of folders will be turned as their EXIF orientation says. Objects of
      YOLO's files are those of such images; other files say for which size theirs are.

  Raises:
    ValueError: there is no such data set or split, or what it says cannot be.
  """
  name = _resolve(name, data_dir)
  if name == COCO_FOLDER:
    return coco_folder.CocoFolder(data_dir, split, class_names, image_dir, other_classes)
  if image_dir is not None:
    raise config_errors.ConfigError(
      f'dataset.image_dir is for COCO files, and {name!r} says itself where its images are; set '
      'dataset.image_dir=None',
      {'dataset.image_dir': None},
    )
  if name == YOLO_FOLDER:
    return yolo_folder.YoloFolder(data_dir, split, class_names, upright, other_classes)
  if name == VOC_FOLDER:
    return voc_folder.VocFolder(data_dir, split, class_names, upright, other_classes)
  if sources.bare_name(name) == SCENES:
    return scenes.SceneSource(name, split, data_dir, class_names)
  with _suggestions(name):
    return tfds_source.TfdsSource(name, split, data_dir, class_names, other_classes)


def complete_splits(config: ml_collections.ConfigDict) -> list[str]:
  """Sets the splits that `config.dataset` leaves open; see `splits.complete`."""
  name = _resolve(config.name, config.data_dir)
  if name == COCO_FOLDER:
    found = coco_folder.find_splits(pathlib.Path(config.data_dir))
    return splits.complete(config, list(found), coco_folder.WHOLE if len(found) == 1 else None)
  if name in (YOLO_FOLDER, VOC_FOLDER):
    module = yolo_folder if name == YOLO_FOLDER else voc_folder
    return splits.complete(config, module.find_splits(pathlib.Path(config.data_dir)), module.WHOLE)
  if sources.bare_name(name) == SCENES:
    return splits.complete(config, ('train', 'validation'))
  with _suggestions(name):
    return splits.complete(config, sources.tfds_splits(name, config.data_dir))


def _resolve(name: str, data_dir: str | os.PathLike[str] | None) -> str:
  """The name of what is opened: a folder of a known layout, or a data set of TFDS."""
  if name == COCO:
    files = {} if data_dir is None else coco_folder.find_splits(pathlib.Path(data_dir))
    return COCO_FOLDER if any(map(coco_folder.is_likely, files.values())) else 'coco/2017'
  if name not in FOLDERS:
    return name
  folder = sources.checked_folder(name, data_dir, 'images and annotations')
  if name != DETECTION_FOLDER:
    return name
  files = coco_folder.find_splits(folder)
  if any(map(coco_folder.is_likely, files.values())):
    return COCO_FOLDER
  if yolo_folder.is_likely(folder):
    return YOLO_FOLDER
  if voc_folder.is_likely(folder):
    return VOC_FOLDER
  if files:
    return COCO_FOLDER
  raise ValueError(
    f'{str(folder)!r} holds neither COCO files ({coco_folder.LAYOUTS}) nor those of YOLO '
    f'({yolo_folder.LAYOUTS}) nor those of Pascal VOC ({voc_folder.LAYOUTS})'
  )


def _suggestions(name: str) -> contextlib.AbstractContextManager[None]:
  return sources.suggestions(
    name,
    (COCO, SCENES, *FOLDERS),
    f'{SCENES!r}, {sources.shown(FOLDERS)}, {COCO!r}, or another dataset of TFDS with boxes',
  )
