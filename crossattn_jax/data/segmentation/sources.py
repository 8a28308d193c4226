"""Sources of segmentation examples: random access to encoded images and label maps by index."""

import io
import os
import pathlib
from typing import Protocol, TypedDict

import ml_collections

from crossattn_jax.data import image_ops, sources, splits
from crossattn_jax.data.scenes import dataset, shapes
from crossattn_jax.data.segmentation import class_tables, folders, taxonomies


class Example(TypedDict):
  """One example: an encoded image, its encoded label map, and a name of each for messages."""

  image: bytes
  label: bytes
  key: str
  label_key: str


# Of folders, for messages.
_CONTENT = 'images and label maps'
# Features of image, label map and name in TFDS.
_TFDS = {
  'cityscapes': ('image_left', 'segmentation_label', 'image_id'),
  'scene_parse150': ('image', 'annotation', None),
  'shape_scenes': ('image', 'segmentation_label', 'id'),
}
# Names of the splits for training and for evaluation.
_SPLITS = {
  'cityscapes': ('train', 'validation'),
  'scene_parse150': ('train', 'test'),
  'shape_scenes': ('train', 'validation'),
  'cityscapes_folder': ('train', 'val'),
  'ade20k_folder': ('training', 'validation'),
}


class Source(Protocol):
  """Random access to the examples of one split; safe to read from threads, picklable."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def image_size(self, index: int, upright: bool = False) -> tuple[int, int]:
    """(height, width) of an image, without decoding it; (1, 1) where that fails."""


def create_source(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Source:
  """Opens one split of a data set.

  Args:
    name: `'shape_scenes'` (written on first use), `'cityscapes'` or `'scene_parse150'` of TFDS,
      prepared, each with its configuration and version if wanted; folders as they are released,
      `'cityscapes_folder'` and `'ade20k_folder'`; or `'segmentation_folder'`, see `folders`.
    split: a split of it; for TFDS any split expression (`'train[:90%]'`), for folders the name of
      a folder (`'train'`, `'training'`), for Cityscapes also a file that lists pairs, for a
      `'segmentation_folder'` also a share of one.
    data_dir: folder of TFDS datasets (TFDS's own default if None), or that of the images.

  Raises:
    ValueError: there is no such data set or split, or it is empty.
  """
  find_pairs = {
    'cityscapes_folder': _cityscapes_pairs,
    'ade20k_folder': _ade20k_pairs,
    taxonomies.SEGMENTATION_FOLDER: folders.find_pairs,
  }
  if name in find_pairs:
    return PairSource(find_pairs[name](sources.checked_folder(name, data_dir, _CONTENT), split))
  bare = sources.bare_name(name)
  if bare not in _TFDS:
    raise sources.unknown_dataset(name, [*_TFDS, *find_pairs], 'segmentation')
  if bare == 'shape_scenes':
    dataset.prepare(name, data_dir, shapes.SHAPES)
  return TfdsSource(name, split, data_dir, *_TFDS[bare])


def complete_splits(config: ml_collections.ConfigDict) -> list[str]:
  """Sets the splits that `config.dataset` leaves open; see `splits.complete`."""
  if config.name == taxonomies.SEGMENTATION_FOLDER:
    folder = sources.checked_folder(config.name, config.data_dir, _CONTENT)
    return splits.complete(config, folders.find_splits(folder), whole=folders.WHOLE)
  names = _SPLITS.get(sources.bare_name(config.name))
  if names is None:
    raise sources.unknown_dataset(
      config.name, [*_SPLITS, taxonomies.SEGMENTATION_FOLDER], 'segmentation'
    )
  for key, name in zip(('train_split', 'eval_split'), names, strict=True):
    if config[key] is None:
      config[key] = name
  return []


def find_taxonomy(config: ml_collections.ConfigDict) -> taxonomies.Taxonomy:
  """What the label maps of a data set mean: the classes of `config.dataset`, or else its own.

  Raises:
    ValueError: nobody says it, or a class of the data set is none of those of the config.
  """
  names = tuple(config.class_names)
  if config.name != taxonomies.SEGMENTATION_FOLDER:
    found, where = taxonomies.find_taxonomy(config.name), f'dataset {config.name!r}'
  else:
    folder = sources.checked_folder(config.name, config.data_dir, _CONTENT)
    table = class_tables.find_table(folder)
    if table is None and names:
      return taxonomies.of_run(config)
    if table is None:
      pairs = folders.find_pairs(folder, config.train_split)
      raise class_tables.missing_table(folder, [mask for _, mask in pairs])
    found, where = class_tables.read_table(table), repr(str(table))
  return found.by_name(names, where) if names else found


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
    self._name, self._split = name, split
    self._image, self._label, self._key = image, label, key
    features, self._examples = sources.open_tfds(name, split, data_dir)
    for feature in (image, label):
      if feature not in features:
        raise ValueError(
          f'dataset {name!r} has no feature {feature!r}; it has {", ".join(features)}'
        )
    # Often all images of a data set have one size.
    self._size = features[image].shape[:2]

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    example = self._examples[index]
    key = f'{self._name}/{self._split}[{index}]'
    if self._key is not None:
      key += f' ({example[self._key].decode()})'
    return {
      'image': example[self._image],
      'label': example[self._label],
      'key': key,
      'label_key': f'{self._label} of {key}',
    }

  def image_size(self, index: int, upright: bool = False) -> tuple[int, int]:
    """See `Source`."""
    if None not in self._size:
      return self._size
    return image_ops.size_in_header(io.BytesIO(self._examples[index][self._image]), upright)


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
      'label_key': label,
    }

  def image_size(self, index: int, upright: bool = False) -> tuple[int, int]:
    """See `Source`."""
    return image_ops.size_in_header(self.pairs[index][0], upright)


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
    for image in _visible(root / 'leftImg8bit' / split, '*/*_leftImg8bit.png'):
      stem = image.name.removesuffix('_leftImg8bit.png')
      pairs.append(
        (image, root / 'gtFine' / split / image.parent.name / f'{stem}_gtFine_labelIds.png')
      )
  expected = f'leftImg8bit/{split}/CITY/*_leftImg8bit.png, or a file {split!r} that lists pairs'
  return _checked(root, pairs, expected)


def _ade20k_pairs(root: pathlib.Path, split: str) -> list[tuple[str, str]]:
  """`images/SPLIT/*.jpg` and `annotations/SPLIT/*.png`."""
  images = _visible(root / 'images' / split, '*.jpg')
  pairs = [(image, root / 'annotations' / split / f'{image.stem}.png') for image in images]
  return _checked(root, pairs, f'images/{split}/*.jpg and annotations/{split}/*.png')


def _visible(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
  return sorted(
    path
    for path in folder.glob(pattern)
    if not any(map(sources.is_hidden, path.relative_to(folder).parts))
  )


def _checked(
  root: pathlib.Path, pairs: list[tuple[pathlib.Path, pathlib.Path]], expected: str
) -> list[tuple[str, str]]:
  if not pairs:
    raise ValueError(f'no examples in {str(root)!r}; expected {expected}')
  missing = [(pair, path) for pair in pairs for path in pair if not path.is_file()]
  if missing:
    (image, label), path = missing[0]
    raise ValueError(
      f'{str(path)!r} does not exist; {str(image)!r} needs {str(label)!r}; {len(missing)} files of '
      f'{len(pairs)} examples are missing'
    )
  return [(str(image), str(label)) for image, label in pairs]
