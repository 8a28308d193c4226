"""Sources of segmentation examples: random access to encoded images and label maps by index."""

from collections.abc import Callable
import dataclasses
import difflib
import io
import os
import pathlib
from typing import BinaryIO, Protocol, TypedDict

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from crossattn_jax.data import sources
from crossattn_jax.data.scenes import shapes as shape_scenes
from crossattn_jax.data.segmentation import ade20k, cityscapes

IGNORE_LABEL = 255


class Example(TypedDict):
  """One example: an encoded image, its encoded label map, and a name for messages."""

  image: bytes
  label: bytes
  key: str


@dataclasses.dataclass(frozen=True)
class Taxonomy:
  """What the numbers in the files of a data set mean.

  Attributes:
    class_names: in the order of the classes.
    palette: a colour of each, uint8 `[classes, 3]`.
    to_classes: maps labels as the files have them, uint8, to classes and 255.
    to_labels: the other way.
  """

  class_names: tuple[str, ...]
  palette: np.ndarray
  to_classes: Callable[[np.ndarray], np.ndarray]
  to_labels: Callable[[np.ndarray], np.ndarray]

  @property
  def num_classes(self) -> int:
    """How many classes there are."""
    return len(self.class_names)


def _as_they_are(labels: np.ndarray) -> np.ndarray:
  return labels


CITYSCAPES = Taxonomy(
  cityscapes.CLASS_NAMES,
  cityscapes.PALETTE,
  cityscapes.to_train_ids,
  cityscapes.to_label_ids,
)
ADE20K = Taxonomy(ade20k.CLASS_NAMES, ade20k.PALETTE, ade20k.to_classes, ade20k.to_labels)
# The things of ADE20K's instance segmentation, which TFDS's `scene_parse150` holds.
ADE20K_THINGS = Taxonomy(
  tuple(f'thing {number}' for number in range(1, 101)),
  cityscapes.voc_palette(101)[1:],
  ade20k.to_classes,
  ade20k.to_labels,
)
SHAPE_SCENES = Taxonomy(shape_scenes.CLASS_NAMES, shape_scenes.PALETTE, _as_they_are, _as_they_are)

# Of each data set: taxonomy, features of image and label map in TFDS, feature with its name.
_TFDS = {
  'cityscapes': (CITYSCAPES, 'image_left', 'segmentation_label', 'image_id'),
  'scene_parse150': (ADE20K_THINGS, 'image', 'annotation', None),
  'shape_scenes': (SHAPE_SCENES, 'image', 'segmentation_label', 'id'),
}
_FOLDERS = {'cityscapes_folder': CITYSCAPES, 'ade20k_folder': ADE20K}


class Source(Protocol):
  """Random access to the examples of one split; safe to read from threads, picklable."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def image_size(self, index: int) -> tuple[int, int]:
    """(height, width) of an image, without decoding it; (1, 1) where that fails."""


def find_taxonomy(name: str) -> Taxonomy:
  """The classes of a data set; needs no files.

  Raises:
    ValueError: there is no such data set.
  """
  bare = name.split('/')[0].split(':')[0]
  if bare in _TFDS:
    return _TFDS[bare][0]
  if name in _FOLDERS:
    return _FOLDERS[name]
  known = [*_TFDS, *_FOLDERS]
  near = difflib.get_close_matches(name, known, n=1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  raise ValueError(f'unknown dataset {name!r}; {hint}known for segmentation: {", ".join(known)}')


def create_source(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Source:
  """Opens one split of a data set.

  Args:
    name: `'shape_scenes'` (written on first use), `'cityscapes'` or `'scene_parse150'` of TFDS,
      prepared, each with its configuration and version if wanted; or folders as they are released:
      `'cityscapes_folder'`, `'ade20k_folder'`.
    split: a split of it; for TFDS any split expression (`'train[:90%]'`), for folders the name of
      a folder (`'train'`, `'training'`), for Cityscapes also a file that lists pairs.
    data_dir: folder of TFDS datasets (TFDS's own default if None), or the released folder.

  Raises:
    ValueError: there is no such data set or split, or it is empty.
  """
  find_taxonomy(name)
  if name in _FOLDERS:
    if data_dir is None:
      raise ValueError(f'{name!r} needs data_dir: the folder as it was released')
    pairs = {'cityscapes_folder': _cityscapes_pairs, 'ade20k_folder': _ade20k_pairs}[name]
    return PairSource(pairs(pathlib.Path(data_dir), split))
  bare = name.split('/')[0].split(':')[0]
  if bare == 'shape_scenes':
    shape_scenes.prepare(name, data_dir)
  return TfdsSource(name, split, data_dir, *_TFDS[bare][1:])


class TfdsSource:
  """A split of a TFDS dataset prepared as ArrayRecord, images left encoded."""

  def __init__(
    self,
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    image: str,
    label: str,
    key: str | None,
  ):
    builder = sources.open_prepared(name, data_dir)
    self._name, self._split = name, split
    self._image, self._label, self._key = image, label, key
    for feature in (image, label):
      if feature not in builder.info.features:
        raise ValueError(
          f'dataset {name!r} has no feature {feature!r}; it has {", ".join(builder.info.features)}'
        )
    pictures = [
      feature
      for feature, kind in builder.info.features.items()
      if isinstance(kind, tfds.features.Image)
    ]
    # Often all images of a data set have one size.
    self._size = builder.info.features[image].shape[:2]
    self._examples = sources.open_split(
      builder, name, split, data_dir, dict.fromkeys(pictures, tfds.decode.SkipDecoding())
    )

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    example = self._examples[index]
    key = f'{self._name}/{self._split}[{index}]'
    if self._key is not None:
      key += f' ({example[self._key].decode()})'
    return {'image': example[self._image], 'label': example[self._label], 'key': key}

  def image_size(self, index: int) -> tuple[int, int]:
    """See `Source`."""
    if None not in self._size:
      return self._size
    return _size_in_header(io.BytesIO(self._examples[index][self._image]))


class PairSource:
  """Images and label maps in files.

  Attributes:
    pairs: (image, label map) of each example.
  """

  def __init__(self, pairs: list[tuple[str, str]]):
    self.pairs = pairs

  def __len__(self) -> int:
    return len(self.pairs)

  def __getitem__(self, index: int) -> Example:
    image, label = self.pairs[index]
    return {
      'image': pathlib.Path(image).read_bytes(),
      'label': pathlib.Path(label).read_bytes(),
      'key': image,
    }

  def image_size(self, index: int) -> tuple[int, int]:
    """See `Source`."""
    return _size_in_header(self.pairs[index][0])


def _size_in_header(file: str | BinaryIO) -> tuple[int, int]:
  try:
    with Image.open(file) as image:
      return image.height, image.width
  except OSError:
    return 1, 1


def _cityscapes_pairs(root: pathlib.Path, split: str) -> list[tuple[str, str]]:
  """`leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/...`, or the pairs that a file lists."""
  listing = root / split
  if listing.is_file():
    lines = [line.split() for line in listing.read_text().splitlines() if line.strip()]
    wrong = next((line for line in lines if len(line) != 2), None)
    if wrong is not None:
      raise ValueError(
        f'{str(listing)!r}: expected two paths per line, an image and its label map, got {wrong}'
      )
    pairs = [(root / image, root / label) for image, label in lines]
  else:
    pairs = []
    for image in sorted((root / 'leftImg8bit' / split).glob('*/*_leftImg8bit.png')):
      stem = image.name.removesuffix('_leftImg8bit.png')
      pairs.append(
        (image, root / 'gtFine' / split / image.parent.name / f'{stem}_gtFine_labelIds.png')
      )
  expected = f'leftImg8bit/{split}/CITY/*_leftImg8bit.png, or a file {split!r} that lists pairs'
  return _checked(root, pairs, expected)


def _ade20k_pairs(root: pathlib.Path, split: str) -> list[tuple[str, str]]:
  """`images/SPLIT/*.jpg` and `annotations/SPLIT/*.png`."""
  images = sorted((root / 'images' / split).glob('*.jpg'))
  pairs = [(image, root / 'annotations' / split / f'{image.stem}.png') for image in images]
  return _checked(root, pairs, f'images/{split}/*.jpg and annotations/{split}/*.png')


def _checked(
  root: pathlib.Path, pairs: list[tuple[pathlib.Path, pathlib.Path]], expected: str
) -> list[tuple[str, str]]:
  if not pairs:
    raise ValueError(f'no examples in {str(root)!r}; expected {expected}')
  for image, label in pairs:
    for path in (image, label):
      if not path.is_file():
        raise ValueError(f'{str(path)!r} does not exist; {str(image)!r} needs {str(label)!r}')
  return [(str(image), str(label)) for image, label in pairs]
