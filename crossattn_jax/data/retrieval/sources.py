"""Sources of images with sentences: random access to region features and their captions."""

from collections.abc import Mapping
import io
import os
import pathlib
from typing import Protocol

import numpy as np
from PIL import Image

from crossattn_jax.data import image_ops, mapped_array, pipeline, sources
from crossattn_jax.data.retrieval import examples, folder, word_pieces
from crossattn_jax.data.scenes import captions, dataset, regions, shapes

REGION_FILES, FOLDER = 'region_files', 'caption_folder'

# Rows at either end of a file in which it is looked for repetitions.
_SEEN_ROWS = 64


class Source(Protocol):
  """Random access to the images of one split; safe to read from threads, picklable.

  Attributes:
    captions_per_image: number of captions of each image.
  """

  captions_per_image: int

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> examples.Example:
    """Raises `pipeline.UnreadableError` for an image without usable regions."""

  def key(self, index: int) -> str:
    """The id of an image."""

  def picture(self, index: int) -> examples.Picture | None:
    """The image itself, where it is at hand."""


def create_source(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  region_dim: int = 2048,
  image_files: str | None = None,
  captions_per_image: int | None = None,
) -> Source:
  """Opens one split of a data set.

  Args:
    name: `'shape_scenes'` (written on first use), with its configuration if wanted;
      `'region_files'`: a folder of precomputed features as SCAN distributes them for Flickr30K and
      MS-COCO; or `'caption_folder'`: images and sentences, see `folder`.
    split: of TFDS any split expression; of files the beginning of their names ('train', 'dev',
      'test', 'testall').
    data_dir: folder of TFDS datasets (TFDS's own default if None), or that of the files.
    region_dim: channels of the features of scenes and of folders of images.
    image_files: where pictures of region files are, with `{}` for the id, as `str.format` takes it.
    captions_per_image: what each image should have; by default what the data set has.

  Raises:
    ValueError: there is no such data set or split, or its files do not fit together.
  """
  if _is_scenes(name):
    if captions_per_image not in (None, ShapeScenesSource.captions_per_image):
      raise ValueError(
        f'dataset.captions_per_image={captions_per_image}, but {name!r} has '
        f'{ShapeScenesSource.captions_per_image} captions of each image; set it to None'
      )
    dataset.prepare(name, data_dir, shapes.SHAPES)
    return ShapeScenesSource(name, split, data_dir, region_dim)
  if name not in (REGION_FILES, FOLDER):
    raise sources.unknown_dataset(name, ['shape_scenes', REGION_FILES, FOLDER], 'retrieval')
  if data_dir is None:
    file = f'{split}_ims.npy' if name == REGION_FILES else f'{split}.csv'
    raise ValueError(f'{name!r} needs data_dir: the folder that holds {file}')
  if name == FOLDER:
    return folder.CaptionFolder(data_dir, split, region_dim, captions_per_image)
  return RegionFilesSource(data_dir, split, image_files, captions_per_image)


def own_vocabulary(
  name: str, data_dir: str | os.PathLike[str] | None = None
) -> tuple[str, ...] | None:
  """The words that a data set brings for a tokenizer; None where nobody knows them.

  Of scenes, every word of their captions; of a folder of images, those of its `vocab.txt`.
  """
  if _is_scenes(name):
    return captions.vocabulary()
  if name != FOLDER or data_dir is None or not pathlib.Path(data_dir, folder.VOCABULARY).is_file():
    return None
  return word_pieces.read_vocabulary(pathlib.Path(data_dir, folder.VOCABULARY))


def _is_scenes(name: str) -> bool:
  return sources.bare_name(name) == 'shape_scenes'


class RegionFilesSource:
  """`SPLIT_ims.npy`, `SPLIT_caps.txt` and, for names, `SPLIT_ids.txt`, as SCAN distributes them.

  Source: Lee et al. 2018 (arXiv 1803.08024). Features are mapped into memory, not read at once.
  They have a row of each image, or one of each caption: then those of an image are the same, and
  only the first is used. Caption n belongs to image n // captions_per_image.

  Attributes:
    captions_per_image: of all images; where nobody says it, it is the quotient of the numbers of
      captions and of rows or, where there are as many, how often each row is repeated.
  """

  def __init__(
    self,
    data_dir: str | os.PathLike[str],
    split: str,
    image_files: str | None = None,
    captions_per_image: int | None = None,
  ):
    folder = pathlib.Path(data_dir)
    path = folder / f'{split}_ims.npy'
    captions_path, ids_path = folder / f'{split}_caps.txt', folder / f'{split}_ids.txt'
    for each in (path, captions_path):
      if not each.is_file():
        found = sorted(file.name.removesuffix('_ims.npy') for file in folder.glob('*_ims.npy'))
        raise ValueError(
          f'{str(each)!r} does not exist; {str(folder)!r} has the splits '
          f'{", ".join(found) or "none"}'
        )
    self._captions = read_lines(captions_path)
    if '' in self._captions:
      line = self._captions.index('') + 1
      raise ValueError(
        f'{str(captions_path)!r}, line {line}: there is no caption; every line has to be one'
      )
    self._features = mapped_array.MappedArray(path)
    shape, count = self._features.array.shape, len(self._captions)
    rows = shape[0] if len(shape) == 3 else 0
    self.captions_per_image = captions_per_image or (
      _repetition(self._features.array) if rows == count else count // max(rows, 1)
    )
    self._stride = self.captions_per_image if rows == count else 1
    if not rows or rows * self.captions_per_image != count * self._stride or count % self._stride:
      expected = captions_per_image or 'the same number of'
      raise ValueError(
        f'{str(path)!r} is an array of shape {shape} and {str(captions_path)!r} has {count} lines; '
        f'expected features [images, regions, channels] and {expected} captions of each image, or '
        'a row per caption'
      )
    unequal = _first_unequal(self._features.array, self._stride)
    if unequal is not None:
      raise ValueError(
        f'{str(path)!r} has a row for each of the {count} captions, and as an image has '
        f'{self._stride} captions, row {unequal} should be the same as row {unequal - 1}; set '
        'dataset.captions_per_image, to 1 if every row is another image'
      )
    self._ids = read_lines(ids_path) if ids_path.is_file() else None
    if self._ids is not None:
      if len(self._ids) == count:
        self._ids = self._ids[:: self.captions_per_image]
      if len(self._ids) != len(self):
        raise ValueError(
          f'{str(ids_path)!r} has {len(self._ids)} lines for {len(self)} images; expected one of '
          'each image or of each caption, or no such file'
        )
    self._image_files = image_files

  def __len__(self) -> int:
    return len(self._captions) // self.captions_per_image

  def __getitem__(self, index: int) -> examples.Example:
    key = self.key(index)
    row = index * self._stride
    features = np.asarray(self._features.array[row], np.float32)
    if not np.isfinite(features).all():
      raise pipeline.UnreadableError(
        f'{key!r}: row {row} of {str(self._features.path)!r} has values that are not finite'
      )
    first = index * self.captions_per_image
    captions_ = tuple(self._captions[first : first + self.captions_per_image])
    return examples.Example(features, captions_, key)

  def key(self, index: int) -> str:
    """The id of an image, made of its place where there are no ids."""
    return f'{self._features.path.stem}[{index}]' if self._ids is None else self._ids[index]

  def picture(self, index: int) -> examples.Picture | None:
    """The image file that `image_files` names; None without it.

    Raises:
      ValueError: the file cannot be read.
    """
    if self._image_files is None:
      return None
    path = self._image_files.format(self.key(index))
    try:
      return examples.Picture(Image.open(path).convert('RGB'), None)
    except OSError as error:
      raise ValueError(
        f'dataset.image_files={self._image_files!r}: cannot read the image {path!r} ({error})'
      ) from error


def _repetition(rows: np.ndarray) -> int:
  """How many rows from the first on are the same."""
  return next((i for i in range(1, len(rows)) if not np.array_equal(rows[i], rows[0])), len(rows))


def _first_unequal(rows: np.ndarray, times: int) -> int | None:
  """The first row that differs from the one before in groups of as many; looks at both ends."""
  inside = [row for row in range(len(rows)) if row % times]
  seen = inside if len(inside) < 2 * _SEEN_ROWS else inside[:_SEEN_ROWS] + inside[-_SEEN_ROWS:]
  return next((row for row in seen if not np.array_equal(rows[row], rows[row - 1])), None)


def read_lines(path: pathlib.Path) -> list[str]:
  """Lines without their ends; unlike `str.splitlines` other separators are part of a line."""
  return [line.strip() for line in path.read_text(encoding='utf-8').rstrip('\n').split('\n')]


class ShapeScenesSource:
  """Procedural scenes: the whole image and each object's box as regions, five composed captions.

  Attributes:
    captions_per_image: 5.
  """

  captions_per_image = captions.CAPTIONS_PER_SCENE

  def __init__(
    self, name: str, split: str, data_dir: str | os.PathLike[str] | None, region_dim: int
  ):
    self._region_dim = region_dim
    _, self._examples = sources.open_tfds(name, split, data_dir)

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> examples.Example:
    example = self._examples[index]
    key = example['id'].decode()
    try:
      image = image_ops.decode(example['image'], 3)
    except pipeline.UnreadableError as error:
      raise pipeline.UnreadableError(f'{key!r}: {error}') from error
    objects = example['objects']
    colors = tuple(shapes.COLORS)
    items = [
      captions.Item(shapes.CLASS_NAMES[label], colors[color], shapes.TEXTURES[texture])
      for label, color, texture in zip(
        objects['label'], objects['color'], objects['texture'], strict=True
      )
    ]
    return examples.Example(
      regions=regions.region_features(np.asarray(image), _boxes(objects), self._region_dim),
      captions=captions.captions(example['caption'].decode(), items),
      key=key,
    )

  def key(self, index: int) -> str:
    """The id of a scene."""
    return self._examples[index]['id'].decode()

  def picture(self, index: int) -> examples.Picture:
    """The scene with the boxes of its regions."""
    example = self._examples[index]
    image = Image.open(io.BytesIO(example['image']))
    size = np.array([image.height, image.width] * 2)
    boxes = np.array(_boxes(example['objects'])) * size
    return examples.Picture(image.convert('RGB'), tuple(map(tuple, boxes.tolist())))


def _boxes(objects: Mapping[str, np.ndarray]) -> list[tuple[float, float, float, float]]:
  """Of the regions of a scene, as shares of height and width: all of it, then the objects'."""
  return [(0.0, 0.0, 1.0, 1.0), *(tuple(map(float, box)) for box in objects['bbox'])]
