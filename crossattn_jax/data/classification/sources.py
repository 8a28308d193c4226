"""Sources of classification examples: random access to encoded images by index."""

import collections
from collections.abc import Sequence
import os
import pathlib
from typing import Protocol, TypedDict

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from crossattn_jax import config_errors
from crossattn_jax.data import label_tables, sources, splits
from crossattn_jax.data.classification import digits

DIGITS = 'digits'
IMAGE_FOLDER = 'image_folder'
IMAGE_TABLE = 'image_table'

# Text features by which the datasets of TFDS name an example.
_KEY_FEATURES = ('file_name', 'filename', 'image/filename', 'id', 'image_id')


class Example(TypedDict):
  """One example: an encoded image (PNG, JPEG, ...), its class, and a name for messages.

  Where images have any number of classes, the label is `[classes]` of 0 and 1.
  """

  image: bytes
  label: int | np.ndarray
  key: str


class Source(Protocol):
  """Random access to the examples of one split; safe to read from threads, picklable.

  Attributes:
    class_names: names of the classes in the order of the labels.
  """

  class_names: tuple[str, ...]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


def create_source(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  class_names: Sequence[str] | None = None,
  multi_label: bool = False,
) -> Source:
  """Opens one split of a dataset.

  Args:
    name: `'digits'` (written on first use), `'image_folder'` (a folder per class), `'image_table'`
      (tables that name files and their classes, see `label_tables.LabelTable`), or any image
      classification dataset of TFDS that has been prepared, with its configuration and version if
      wanted: `'imagenet2012'`, `'imagenet_resized/64x64'`, `'cifar10:3.0.2'`.
    split: a split of it, or a slice of one (`'train[:90%]'`). Of an image folder it is the name of
      a folder in `data_dir`, or `'.'` where the folders of classes are in `data_dir` itself; its
      slices are those of `splits.FolderSplit`.
    data_dir: folder of TFDS datasets (TFDS's own default if None), or the image folder.
    class_names: the classes that labels count through, usually those of the training split. An
      image folder is mapped to them by name; by default it has its own, in alphabetical order. So
      is a TFDS dataset whose own names, in another order, they are; else they rename its classes.
    multi_label: whether images have any number of classes, of an image table alone.

  Raises:
    ValueError: the dataset, its split or a class does not exist or is empty, or it is not prepared
      in a format with random access. The message says what exists or which command to run.
  """
  if name in (IMAGE_FOLDER, IMAGE_TABLE) and data_dir is None:
    raise ValueError(f'{name!r} needs data_dir: the folder that holds {split!r}')
  if name == IMAGE_TABLE:
    return ImageTable(data_dir, split, class_names, multi_label)
  if multi_label:
    raise ValueError(
      f'dataset.multi_label is for dataset.name={IMAGE_TABLE!r}; images of {name!r} have one class'
    )
  if name == IMAGE_FOLDER:
    return ImageFolder(data_dir, split, class_names)
  if name == DIGITS:
    digits.prepare(data_dir)
  expected = (
    f'{DIGITS!r}, {IMAGE_FOLDER!r}, {IMAGE_TABLE!r} or a dataset of TFDS '
    '(tfds.list_builders(with_community_datasets=False) shows all)'
  )
  with sources.suggestions(name, (DIGITS, IMAGE_FOLDER, IMAGE_TABLE), expected):
    return TfdsSource(name, split, data_dir, class_names)


def complete_splits(config: ml_collections.ConfigDict) -> list[str]:
  """Sets the splits that `config.dataset` leaves open; see `splits.complete`."""
  if config.name in (IMAGE_FOLDER, IMAGE_TABLE) and config.data_dir is None:
    raise ValueError(f'{config.name!r} needs dataset.data_dir: the folder of the images')
  if config.name == IMAGE_TABLE:
    return splits.complete(config, label_tables.find_tables(config.data_dir))
  if config.name == IMAGE_FOLDER:
    return splits.complete(config, _subfolders(pathlib.Path(config.data_dir)), whole='.')
  if config.name == DIGITS:
    digits.prepare(config.data_dir)
  return splits.complete(config, sources.tfds_splits(config.name, config.data_dir))


def is_multi_label(config: ml_collections.ConfigDict) -> bool:
  """Whether a training image of `config.dataset` has not exactly one class."""
  if config.name != IMAGE_TABLE:
    return False
  table = label_tables.LabelTable(config.data_dir, config.train_split)
  return any(len(labels) != 1 for labels in table.labels)


class TfdsSource:
  """A split of a TFDS dataset prepared as ArrayRecord, images left encoded.

  Attributes:
    class_names: names of the classes in the order of the labels.
  """

  def __init__(
    self,
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
  ):
    self._name, self._split = name, split
    features, self._examples = sources.open_tfds(name, split, data_dir)
    self._image = _single_feature(name, features, tfds.features.Image)
    self._label = _single_feature(name, features, tfds.features.ClassLabel)
    self._key = next((key for key in _KEY_FEATURES if key in features), None)
    own = tuple(features[self._label].names)
    self.class_names = own if class_names is None else tuple(class_names)
    if len(own) != len(self.class_names):
      raise ValueError(
        f'dataset {name!r} has {len(own)} classes ({sources.shown(own)}), but '
        f'dataset.class_names are {len(self.class_names)} ({sources.shown(self.class_names)})'
      )
    moved = set(own) == set(self.class_names)
    self._labels = [self.class_names.index(name) if moved else i for i, name in enumerate(own)]

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    example = self._examples[index]
    key = f'{self._name}/{self._split}[{index}]'
    if self._key is not None:
      key += f' ({example[self._key].decode()})'
    label = int(example[self._label])
    if not 0 <= label < len(self._labels):
      raise ValueError(
        f'{key} has the label {label}, which is none of the {len(self._labels)} classes; splits '
        'without labels have -1: set dataset.eval_split, or dataset.train_split, to another'
      )
    return {'image': example[self._image], 'label': self._labels[label], 'key': key}


class ImageFolder:
  """`data_dir/split/class/**/image.jpg`, the layout of torchvision's `ImageFolder`.

  The split may be a share of the images, see `splits.FolderSplit`. Labels number the classes in the
  order of their names; the images of a class are ordered by path.
  Only local folders: a bucket is better served by a TFDS dataset in a few large files.

  Attributes:
    class_names: names of the classes in the order of the labels.
  """

  def __init__(
    self, data_dir: str | os.PathLike[str], split: str, class_names: Sequence[str] | None = None
  ):
    share = splits.FolderSplit.parse(split)
    folder = pathlib.Path(data_dir) / share.name
    found = class_folders(data_dir, split)
    self.class_names = tuple(found if class_names is None else class_names)
    unknown = sorted(set(found).difference(self.class_names))
    if unknown:
      raise sources.unknown_classes(repr(str(folder)), unknown, self.class_names)
    self._paths: list[str] = []
    self._labels: list[int] = []
    total, left_out, empty = 0, _beside_classes(folder), []
    for label, name in enumerate(self.class_names):
      paths, others = sources.find_files(folder / name)
      if name in found and not paths:
        extensions = ', '.join(sources.IMAGE_EXTENSIONS)
        raise ValueError(
          f'class folder {str(folder / name)!r} holds no image ({extensions}); add images or '
          'remove the folder'
        )
      total, left_out = total + len(paths), left_out + others
      paths = [path for path in paths if share.has(os.path.relpath(path, folder))]
      if not paths:
        empty.append(name)
      self._paths += paths
      self._labels += [label] * len(paths)
    if not self._paths:
      raise splits.empty_share(split, data_dir, total)
    if empty:
      where = os.fspath(data_dir)
      sources.say_once(f'{split!r} of {where!r} has no image of {sources.shown(empty)}')
    if left_out:
      sources.say_once(f'left out of {str(folder)!r}: {sources.counted(left_out)}')

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> Example:
    path = self._paths[index]
    with open(path, 'rb') as file:
      return {'image': file.read(), 'label': self._labels[index], 'key': path}


class ImageTable:
  """`data_dir/split.csv` with columns `file` and `labels`, and the images that it names.

  Attributes:
    class_names: names of the classes in the order of the labels.
  """

  def __init__(
    self,
    data_dir: str | os.PathLike[str],
    split: str,
    class_names: Sequence[str] | None = None,
    multi_label: bool = False,
  ):
    self._table = label_tables.LabelTable(data_dir, split, class_names)
    self._multi_label = multi_label
    self.class_names = self._table.class_names
    self._table.check_files()
    for path, labels in zip(self._table.paths, self._table.labels, strict=True):
      if len(labels) != 1 and not multi_label:
        raise config_errors.ConfigError(
          f'{path!r} has {len(labels)} classes, where one of each image is expected; set '
          'dataset.multi_label=True',
          {'dataset.multi_label': True},
        )

  def __len__(self) -> int:
    return len(self._table)

  def __getitem__(self, index: int) -> Example:
    path = self._table.paths[index]
    label = self._table.target(index) if self._multi_label else self._table.labels[index][0]
    return {'image': pathlib.Path(path).read_bytes(), 'label': label, 'key': path}


def class_folders(data_dir: str | os.PathLike[str], split: str) -> tuple[str, ...]:
  """Names of the class folders of a split of an image folder, in the order of their labels.

  Raises:
    ValueError: there is no such split, or no class folder in it.
  """
  if not os.path.isdir(data_dir):
    where = '' if os.path.isabs(data_dir) else f' in {os.getcwd()!r}'
    raise ValueError(f'{os.fspath(data_dir)!r} is no folder{where}; set dataset.data_dir')
  split = splits.FolderSplit.parse(split).name
  folder = pathlib.Path(data_dir) / split
  if not folder.is_dir():
    there = _subfolders(pathlib.Path(data_dir))
    raise config_errors.UnknownName(
      f'no folder {split!r} in {os.fspath(data_dir)!r}; '
      f'it has {sources.shown(there) or "no folders"}',
      split,
      there,
    )
  names = _subfolders(folder)
  if not names:
    raise ValueError(f'{str(folder)!r} has no folders; expected one folder of images per class')
  return tuple(names)


def _beside_classes(folder: pathlib.Path) -> collections.Counter[str]:
  """Files in the folder of a split itself, by their extension."""
  return collections.Counter(
    f'{os.path.splitext(entry.name)[1].lower()} beside the folders of classes'
    for entry in os.scandir(folder)
    if entry.is_file() and not sources.is_hidden(entry.name)
  )


def _subfolders(folder: pathlib.Path) -> list[str]:
  if not folder.is_dir():
    return []
  return sorted(
    entry.name
    for entry in os.scandir(folder)
    if entry.is_dir() and not sources.is_hidden(entry.name)
  )


def _single_feature(name: str, features: tfds.features.FeaturesDict, kind: type) -> str:
  """Name of the one top-level feature of a kind; of several the one that bears the usual name.

  Raises:
    ValueError: there is none, or which one is meant is not clear.
  """
  found = [key for key in features if isinstance(features[key], kind)]
  usual = {tfds.features.ClassLabel: 'label', tfds.features.Image: 'image'}[kind]
  if len(found) > 1 and usual in found:
    return usual
  if len(found) != 1:
    raise ValueError(
      f'dataset {name!r} is not for classification: expected one {kind.__name__} feature, '
      f'found {found or "none"} among {list(features)}'
    )
  return found[0]
