"""Folders with an XML file of objects for each image, as Pascal VOC and LabelImg write them.

Source: Everingham et al. 2010, "The Pascal Visual Object Classes (VOC) challenge".
"""

from collections.abc import Collection, Sequence
import dataclasses
import os
import pathlib
from typing import Any
from xml.etree import ElementTree

import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data import image_ops, sources, splits
from crossattn_jax.data.detection import annotations, classes

# The split of all images, where there are none.
WHOLE = '.'
LAYOUTS = (
  'JPEGImages/*.jpg, Annotations/*.xml and ImageSets/Main/SPLIT.txt, or SPLIT/*.jpg and SPLIT/*.xml'
)
_LISTS = pathlib.Path('ImageSets/Main')
# Folders of images and of XML files.
_PLACES = (('JPEGImages', 'Annotations'), ('images', 'annotations'), ('.', '.'))
_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


@dataclasses.dataclass(frozen=True, eq=False)
class _File:
  """What the file of an image says; (height, width) is None where it does not say it."""

  size: tuple[int, int] | None = None
  names: Sequence[str] = ()
  boxes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 4)))
  difficult: Sequence[bool] = ()

  def only(self, names: Collection[str]) -> '_File':
    """The file with the objects of some classes."""
    places = [place for place, name in enumerate(self.names) if name in names]
    names, difficult = ([each[i] for i in places] for each in (self.names, self.difficult))
    return _File(self.size, names, self.boxes[places], difficult)


class XmlObjects:
  """The objects of images, of which each has an XML file or none; boxes alone.

  Difficult objects count as crowds: they are not learnt from, and nobody needs to find them. Labels
  count the names of the objects in alphabetical order, unless class names are given.

  Attributes:
    counts: int64 `[images]`, how many each has.
    class_names: through which labels count.
    category_ids: the classes, counted from 1.
    sizes: (height, width) of each image; None where its file does not say it.
  """

  def __init__(
    self,
    texts: Sequence[str],
    chosen: Sequence[int],
    class_names: Sequence[str],
    described: str,
    other_classes: str = 'error',
  ):
    """Reads the XML files.

    Args:
      texts: the paths of all files; those that are not there have no objects.
      chosen: numbers of those that count. The others have names of classes only.
      class_names: the classes that labels count through, to which those of the files are mapped.
      described: the images, for messages.
      other_classes: of objects that have none of these: one of `classes.OTHERS`.

    Raises:
      ValueError: a file is wrong, or there are no objects.
    """
    files = [_read(text) if os.path.isfile(text) else _File() for text in texts]
    names = sorted({name for file in files for name in file.names})
    if not names:
      raise ValueError(f'the XML files of {described} have no objects')
    own = {name: number for number, name in enumerate(names, 1)}
    mapped = classes.by_name(own, names, class_names, described, other_classes)
    self.class_names, self.category_ids = mapped.names, mapped.numbers
    self._labels = dict(zip(own, mapped.labels.tolist(), strict=True))
    labels = [self._labels[name] for index in chosen for name in files[index].names]
    classes.say_left_out(np.array(labels), described)
    kept = {name for name, label in self._labels.items() if label >= 0}
    self._files = [files[index].only(kept) for index in chosen]
    self.counts = np.array([len(file.names) for file in self._files])
    self.sizes = [file.size for file in self._files]

  def of_image(self, index: int, size: tuple[int, int]) -> annotations.Objects:
    """The objects of an image, of (height, width) unless its file says another."""
    file = self._files[index]
    return annotations.Objects(
      size=size if file.size is None else file.size,
      boxes=file.boxes,
      labels=np.array([self._labels[name] for name in file.names], np.int32),
      crowd=np.array(file.difficult, bool),
      area=np.prod(file.boxes[:, 2:] - file.boxes[:, :2], axis=1),
      ids=1 + self.counts[:index].sum() + np.arange(len(file.names)),
    )


class VocFolder:
  """Images and the XML files of their objects, as `XmlObjects` has them: a `sources.Source`.

  Attributes:
    class_names: as those of `XmlObjects`.
    category_ids: likewise.
    image_ids: the images, counted from 1.
    num_objects: int64 `[images]`.
    masks_missing: why there are no masks, for messages.
  """

  masks_missing = 'the XML files of Pascal VOC have boxes alone'

  def __init__(
    self,
    data_dir: str | os.PathLike[str],
    split: str,
    class_names: Sequence[str] = (),
    upright: bool = True,
    other_classes: str = 'error',
  ):
    """Reads the XML files of a split.

    Args:
      data_dir: the folder.
      split: a name of `find_splits`, or `WHOLE`, or a share of one, see `splits.FolderSplit`.
      class_names: the classes that labels count through, to which the folder's are mapped by name.
      upright: whether images are turned as their EXIF orientation says; for those whose file does
        not say their size.
      other_classes: of objects that have none of these: one of `classes.OTHERS`.

    Raises:
      ValueError: there is no such split, or what a file says cannot be; the message names it.
    """
    root, share = pathlib.Path(data_dir), splits.FolderSplit.parse(split)
    self._upright = upright
    pairs = _find_pairs(root, share.name)
    chosen = [
      index for index, (image, _) in enumerate(pairs) if share.has(os.path.relpath(image, root))
    ]
    if not chosen:
      raise splits.empty_share(split, root, len(pairs))
    self._paths = [pairs[index][0] for index in chosen]
    self.image_ids = tuple(index + 1 for index in chosen)
    described = f'split {split!r} of {str(root)!r}'
    texts = [text for _, text in pairs]
    self._objects = XmlObjects(texts, chosen, class_names, described, other_classes)
    self.num_objects = self._objects.counts
    self.class_names, self.category_ids = self._objects.class_names, self._objects.category_ids

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {'image': pathlib.Path(self._paths[index]).read_bytes(), 'key': self._paths[index]}

  def image_size(self, index: int) -> tuple[int, int]:
    """See `sources.Source`."""
    size = self._objects.sizes[index]
    return image_ops.size_in_header(self._paths[index], self._upright) if size is None else size

  def annotations(self, index: int) -> annotations.Objects:
    """See `sources.Source`."""
    return self._objects.of_image(index, self.image_size(index))


def find_splits(root: pathlib.Path) -> list[str]:
  """Names of the lists of images, or else of the folders with XML files."""
  lists = sorted(path for path in (root / _LISTS).glob('*.txt') if not sources.is_hidden(path.name))
  if lists:
    return [path.stem for path in lists if '_' not in path.stem]  # No `CLASS_train.txt`.
  places = [root / texts for _, texts in _PLACES]
  folders = {path for place in places for path in place.glob('*') if any(path.glob('*.xml'))}
  folders |= {path.parent for _, texts in _PLACES[:-1] for path in root.glob(f'*/{texts}')}
  names = {texts for _, texts in _PLACES}
  return sorted({path.name for path in folders if not sources.is_hidden(path.name)} - names)


def is_likely(root: pathlib.Path) -> bool:
  """Whether a folder has XML files of objects."""
  return any(any(root.glob(pattern)) for pattern in ('*.xml', '*/*.xml', '*/*/*.xml'))


def _find_pairs(root: pathlib.Path, name: str) -> list[tuple[str, str]]:
  """Paths of the images of a split and of their XML files, which need not be there."""
  listed = root / _LISTS / f'{name}.txt'
  if listed.is_file():
    images, texts = (root / folder for folder in _PLACES[0])
    stems = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
    by_stem = sources.by_stem(sources.find_files(images)[0], images)
    pairs = [(by_stem.get(stem, str(images / stem)), str(texts / f'{stem}.xml')) for stem in stems]
    missing = [path for pair in pairs for path in pair if not os.path.isfile(path)]
    if missing:
      raise ValueError(
        f'{str(listed)!r} names {len(stems)} images, of which {len(missing)} files are not there, '
        f'such as {missing[0]!r}; add them or remove their lines'
      )
    return pairs
  places = [(root / image / name, root / text / name) for image, text in _PLACES[:-1]]
  places += [(root / name / image, root / name / text) for image, text in _PLACES]
  for images, texts in places:
    found = sources.find_files(texts, ('.xml',))[0] if texts.is_dir() else []
    if not found or not images.is_dir():
      continue
    by_stem = sources.by_stem(sources.find_files(images)[0], images)
    lonely = [path for stem, path in sources.by_stem(found, texts).items() if stem not in by_stem]
    if lonely:
      raise ValueError(
        f'{len(lonely)} of {len(found)} XML files in {str(texts)!r} have no image in '
        f'{str(images)!r}, such as {lonely[0]!r}; add the images or remove the files'
      )
    return [(path, str(texts / f'{stem}.xml')) for stem, path in by_stem.items()]
  there = find_splits(root)
  raise config_errors.UnknownName(
    f'{str(root)!r} has no images and XML files of split {name!r}, but of '
    f'{sources.shown(there) or "none"}; expected {LAYOUTS}',
    name,
    there,
  )


def _read(path: str) -> _File:
  """Reads an XML file.

  Raises:
    ValueError: it is none of Pascal VOC, or what it says of an object cannot be.
  """
  try:
    tree = ElementTree.parse(path).getroot()
  except ElementTree.ParseError as error:
    raise ValueError(f'{path!r} is not XML: {error}') from error
  if tree.tag != 'annotation':
    raise ValueError(f'{path!r} has <{tree.tag}>, where <annotation> of Pascal VOC is expected')
  height, width = (tree.findtext(f'size/{side}', '0').strip() for side in ('height', 'width'))
  known = height.isdigit() and width.isdigit() and int(height) > 0 and int(width) > 0
  names, boxes, difficult = [], [], []
  for number, item in enumerate(tree.findall('object'), 1):
    name = item.findtext('name', '').strip()
    where = f'{path!r}, object {number} ({name!r})'
    if not name:
      raise ValueError(f'{where} has no <name>')
    corners = [item.findtext(f'bndbox/{corner}', '') for corner in _CORNERS]
    try:
      box = np.array(corners, np.float64)
    except ValueError as error:
      raise ValueError(
        f'{where} has a <bndbox> of {dict(zip(_CORNERS, corners, strict=True))}; expected numbers'
      ) from error
    # The first pixel is called 1, and the last one of a box is in it.
    box -= (1, 1, 0, 0)
    if not np.isfinite(box).all() or (box[2:] < box[:2]).any():
      raise ValueError(
        f'{where} has a <bndbox> of {dict(zip(_CORNERS, corners, strict=True))}, which has a '
        'negative side; correct or remove it'
      )
    if known and ((box[:2] >= (int(width), int(height))) | (box[2:] <= 0)).any():
      raise ValueError(
        f'{where} has a <bndbox> of {dict(zip(_CORNERS, corners, strict=True))} outside of the '
        f'image, which is {height} x {width} pixels (height x width); correct or remove it'
      )
    names.append(name)
    boxes.append(box)
    difficult.append(item.findtext('difficult', '0').strip() == '1')
  size = (int(height), int(width)) if known else None
  return _File(size, names, np.array(boxes, np.float64).reshape(-1, 4), difficult)
