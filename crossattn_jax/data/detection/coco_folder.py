"""Folders with COCO files: which file is of which split, and where its images are."""

import collections
from collections.abc import Sequence
import os
import pathlib
import re

import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data import sources, splits
from crossattn_jax.data.detection import annotations, classes, coco

# The split of all images, where there is one file.
WHOLE = '.'
LAYOUTS = (
  'annotations/instances_SPLIT.json and SPLIT/*.jpg, SPLIT.json and images/*.jpg, '
  'SPLIT/_annotations.coco.json and SPLIT/*.jpg, or one JSON and images/*.jpg'
)
# In which every file is a split; in other folders a file is one if it is the only one.
_FOLDERS = ('.', 'annotations')
# Beside the objects of COCO.
_OTHER_ANNOTATIONS = ('captions_', 'person_keypoints_', 'stuff_', 'panoptic_', 'image_info_')
_AROUND_NAME = re.compile(r'^(instances|annotations)[_.-]|[_.-](annotations|instances|coco)$')
_YEAR = re.compile(r'[_-]?(19|20)\d\d$')
# Bytes.
_GLANCE = 2**16
_IMAGE_FOLDERS = ('.', 'images', 'data')


class CocoFolder:
  """A COCO file and the images that it names: a `sources.Source`.

  Labels count the categories in the order of their ids, unless class names are given. Images have
  the sizes that the file says: they are not opened before they are needed.

  Attributes:
    class_names: names of the classes in the order of the labels.
    category_ids: of each class, by which the file calls it, and results for it should; those of
      classes that it has not follow on the largest.
    image_ids: of each image, in the file.
    num_objects: int64 `[images]`, crowds too.
    masks_missing: an annotation without a mask, for messages; None where all have one.
  """

  def __init__(
    self,
    data_dir: str | os.PathLike[str],
    split: str,
    class_names: Sequence[str] = (),
    image_dir: str | None = None,
    other_classes: str = 'error',
  ):
    """Opens a split.

    Args:
      data_dir: the folder.
      split: a name of `find_splits`, `WHOLE`, or the path of a file below the folder, or a share
        of one of these, see `splits.FolderSplit`.
      class_names: the classes that labels count through, to which the file's are mapped by name.
      image_dir: folder of the images, if it is not found: absolute, or below `data_dir`.
      other_classes: of objects that have none of these: one of `classes.OTHERS`.

    Raises:
      ValueError: there is no such file, it says what cannot be, an image that it names is not
        there, or it has objects of a class that is not among the class names.
    """
    root, share = pathlib.Path(data_dir), splits.FolderSplit.parse(split)
    path = _find_file(root, share.name)
    file = coco.read(path)
    own = {name: number for number, name in file.categories}
    used = {file.categories[place][1] for place in set(file.category.tolist())}
    mapped = classes.by_name(own, used, class_names, repr(str(path)), other_classes)
    self.class_names, self.category_ids = mapped.names, mapped.numbers
    classes.say_left_out(mapped.labels[file.category], repr(str(path)))
    self._file = file = file.only(mapped.labels[file.category] >= 0)
    self._labels = mapped.labels
    chosen = np.array([share.has(name) for name in file.file_names])
    if not chosen.any():
      raise splits.empty_share(split, root, len(chosen))
    self._images = np.flatnonzero(chosen)
    self._folder = _find_images(root, path, file.file_names, image_dir)
    self._first = np.searchsorted(file.image, np.arange(len(file.image_ids) + 1))
    self.image_ids = tuple(file.image_ids[self._images].tolist())
    self.num_objects = np.diff(self._first)[self._images]
    self.masks_missing: str | None = None
    if not file.has_mask.all():
      number = file.ids[np.argmin(file.has_mask)]
      self.masks_missing = f"annotation {number} of {str(path)!r} has no 'segmentation'"

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> dict[str, bytes | str]:
    path = _path(self._folder, self._file.file_names[self._images[index]])
    return {'image': path.read_bytes(), 'key': str(path)}

  def image_size(self, index: int) -> tuple[int, int]:
    """See `sources.Source`."""
    height, width = self._file.sizes[self._images[index]].tolist()
    return height, width

  def annotations(self, index: int) -> annotations.Objects:
    """See `sources.Source`."""
    file, image = self._file, self._images[index]
    span = slice(self._first[image], self._first[image + 1])
    has_masks = self.masks_missing is None
    return annotations.Objects(
      size=self.image_size(index),
      boxes=file.boxes[span],
      labels=self._labels[file.category[span]],
      crowd=file.crowd[span],
      area=file.area[span],
      ids=file.ids[span],
      segmentations=coco.Masks(file, range(span.start, span.stop)) if has_masks else None,
    )


def find_splits(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """The files in a folder that may be COCO's, by the names of their splits.

  A name is without what all have in common: `instances_train2017.json` is 'train'. Where two files
  would have one name (`train2014`, `train2017`), the years stay; where they would still, each is
  called by its path.
  """
  found: list[tuple[str, pathlib.Path]] = []
  for folder in sorted({root, *(path for path in root.glob('*') if path.is_dir())}):
    files = sorted(path for path in folder.glob('*.json') if not _is_other(path))
    if str(folder.relative_to(root)).lower() in _FOLDERS:
      found += [(_AROUND_NAME.sub('', path.stem), path) for path in files]
    elif len(files) == 1 and not sources.is_hidden(folder.name):
      found.append((folder.name, files[0]))
  forms = [
    (_YEAR.sub('', name), name, path.relative_to(root).as_posix(), path) for name, path in found
  ]
  counts = collections.Counter(form for each in forms for form in set(each))
  return {next(form for form in each if counts[form] == 1): each[-1] for each in forms}


def is_likely(path: pathlib.Path) -> bool:
  """Whether a file looks like COCO's; only its beginning and its end are read."""
  with path.open('rb') as file:
    seen = file.read(_GLANCE)
    file.seek(max(0, path.stat().st_size - _GLANCE))
    seen += file.read()
  return b'"images"' in seen or b'"annotations"' in seen


def _is_other(path: pathlib.Path) -> bool:
  return sources.is_hidden(path.name) or path.name.startswith(_OTHER_ANNOTATIONS)


def _find_file(root: pathlib.Path, name: str) -> pathlib.Path:
  found = find_splits(root)
  if name == WHOLE and len(found) == 1:
    return next(iter(found.values()))
  with_year = [path for path in found.values() if _AROUND_NAME.sub('', path.stem) == name]
  named = found.get(name) or (with_year[0] if len(with_year) == 1 else root / name)
  if not named.is_file():
    raise config_errors.UnknownName(
      f'{str(root)!r} has no COCO file of split {name!r}, but of '
      f'{sources.shown(sorted(found)) or "none"}; expected {LAYOUTS}; or set '
      'dataset.train_split and dataset.eval_split to the JSON files, as they are called below '
      'dataset.data_dir',
      name,
      found,
    )
  return named


def _find_images(
  root: pathlib.Path, file: pathlib.Path, names: Sequence[str], image_dir: str | None
) -> pathlib.Path:
  """The folder below which the images are that a file names.

  Raises:
    ValueError: there is none, or not all are there.
  """
  stem = _AROUND_NAME.sub('', file.stem)
  subfolders = [*_IMAGE_FOLDERS, stem, _YEAR.sub('', stem)]
  if image_dir is None:
    folders = [base / part for base in (file.parent, root, root / 'images') for part in subfolders]
    folders += [root / part / 'images' for part in subfolders]
  else:
    folders = [root / image_dir / part for part in subfolders]
  folders = list(dict.fromkeys(folder for folder in folders if folder.is_dir()))
  some = names[:: max(1, len(names) // 10)]
  counts = [sum(_path(folder, name).is_file() for name in some) for folder in folders]
  if not folders or max(counts) == 0:
    raise ValueError(
      f'the images of {str(file)!r}, such as {names[0]!r}, are in none of '
      f'{sources.shown(list(map(str, folders))) or repr(image_dir)}; set dataset.image_dir to the '
      'folder that these names are below'
    )
  folder = folders[int(np.argmax(counts))]
  missing = [name for name in names if not _path(folder, name).is_file()]
  if missing:
    raise ValueError(
      f'{str(file)!r} names {len(missing)} of {len(names)} images that are not in {str(folder)!r}, '
      f'such as {missing[0]!r}; add them, or remove them from the file'
    )
  return folder


def _path(folder: pathlib.Path, name: str) -> pathlib.Path:
  return folder / name.replace('\\', '/')
