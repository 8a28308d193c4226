"""Folders with a text file of objects beside each image, as Ultralytics' YOLO reads them.

Format: https://docs.ultralytics.com/datasets/detect and .../segment. A line is `class x y width
height` (the box's centre and sides) or `class x y x y x y ...` (a polygon), in shares of the
image's width and height; classes count the `names` of `data.yaml`.
"""

import array
from collections.abc import Iterator, Sequence
import os
import pathlib
from typing import Any

import numpy as np
import yaml

from crossattn_jax import config_errors
from crossattn_jax.data import image_ops, sources, splits
from crossattn_jax.data.detection import annotations, classes

# The split of all images, where there are none.
WHOLE = '.'
LAYOUTS = (
  'images/SPLIT/*.jpg and labels/SPLIT/*.txt, or SPLIT/images/*.jpg and SPLIT/labels/*.txt, beside '
  'a data.yaml'
)
_IMAGES, _LABELS = 'images', 'labels'
_TABLES = ('*.yaml', '*.yml')
_LISTS = ('classes.txt', 'labels/classes.txt', 'obj.names')
# Beyond the image, as a share of it: what tools round to.
_TOLERANCE = 0.01
_ROW = "'class x y width height', or 'class x y x y x y ...' for a polygon"


class TextObjects:
  """The objects of images, of which each has a text file or none.

  Attributes:
    counts: int64 `[images]`, how many each has.
    class_names: through which labels count.
    category_ids: of each class, by which the files call it; those of classes that they have not
      follow on the largest.
    masks_missing: a line that is no polygon, for messages; None where all are.
  """

  def __init__(
    self,
    texts: Sequence[str],
    names: Sequence[str],
    table: str,
    class_names: Sequence[str],
    described: str,
    other_classes: str = 'error',
  ):
    """Reads the text files.

    Args:
      texts: their paths; those that are not there have no objects.
      names: of the classes, by which the files count them.
      table: that says the names, for messages.
      class_names: the classes that labels count through, to which `names` are mapped.
      described: the images, for messages.
      other_classes: of objects that have none of these: one of `classes.OTHERS`.

    Raises:
      ValueError: a line is wrong, or there are none.
    """
    # Of each object: class; left, top, right, bottom; where its polygon ends among all corners.
    numbers, boxes, corners, ends = (array.array(kind) for kind in 'qddq')
    self.masks_missing: str | None = None
    counts, repeated, skipped = [], [], []
    skip = other_classes == 'skip' and class_names
    others = {n for n, name in enumerate(names) if name not in class_names} if skip else ()
    for text in texts:
      before, seen = len(numbers), set()
      for line, number, box, polygon in _read_rows(text, len(names), table):
        if number in others:
          skipped.append(number)
          continue
        row = number, box, tuple(polygon)
        if row in seen:
          repeated.append(line)
          continue
        seen.add(row)
        if not polygon and self.masks_missing is None:
          self.masks_missing = f'{line} is a box'
        numbers.append(number)
        boxes.extend(box)
        corners.extend(polygon)
        ends.append(len(corners))
      counts.append(len(numbers) - before)
    if not numbers and not skipped:
      raise ValueError(f'the files of objects of {described} are all empty')
    if repeated:
      sources.say_once(f'{len(repeated)} lines are repeated and left out, such as {repeated[0]}')
    self.counts = np.array(counts)
    self._first = np.concatenate([[0], np.cumsum(self.counts)])
    self._boxes = np.array(boxes).reshape(-1, 4)
    self._corners, self._ends = np.array(corners), np.concatenate([[0], np.array(ends)])
    own = {name: number for number, name in enumerate(names)}
    used = {names[number] for number in {*numbers, *skipped}}
    mapped = classes.by_name(own, used, class_names, described, other_classes)
    classes.say_left_out(mapped.labels[[*numbers, *skipped]], described)
    self.class_names, self.category_ids = mapped.names, mapped.numbers
    self._labels = mapped.labels[np.array(numbers, int)]

  def of_image(self, index: int, size: tuple[int, int]) -> annotations.Objects:
    """The objects of an image of (height, width)."""
    span = range(self._first[index], self._first[index + 1])
    boxes = self._boxes[span.start : span.stop] * np.tile(size[::-1], 2)
    area, segmentations = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), None
    if self.masks_missing is None:
      polygons = [self._corners[self._ends[i] : self._ends[i + 1]].reshape(-1, 2) for i in span]
      segmentations = [[(polygon * size[::-1]).ravel().tolist()] for polygon in polygons]
      area = np.array([annotations.area(polygon, size) for polygon in segmentations], np.float64)
    return annotations.Objects(
      size=size,
      boxes=boxes,
      labels=self._labels[span.start : span.stop],
      crowd=np.zeros(len(span), bool),
      area=area,
      ids=np.arange(1 + span.start, 1 + span.stop),
      segmentations=segmentations,
    )


class YoloFolder:
  """Images and the text files of their objects: a `sources.Source`.

  Attributes:
    class_names: as those of `TextObjects`.
    category_ids: likewise.
    masks_missing: likewise.
    image_ids: the images, counted from 1.
    num_objects: int64 `[images]`.
  """

  def __init__(
    self,
    data_dir: str | os.PathLike[str],
    split: str,
    class_names: Sequence[str] = (),
    upright: bool = True,
    other_classes: str = 'error',
  ):
    """Reads the text files of a split.

    Args:
      data_dir: the folder.
      split: a name of `find_splits`, or `WHOLE`, or a share of one, see `splits.FolderSplit`.
      class_names: the classes that labels count through, to which the folder's are mapped by name.
      upright: whether objects are those of images turned as their EXIF orientation says.
      other_classes: of objects that have none of these: one of `classes.OTHERS`.

    Raises:
      ValueError: there is no such split, or a line is wrong; the message names file and line.
    """
    root, share = pathlib.Path(data_dir), splits.FolderSplit.parse(split)
    self._upright = upright
    own, where = read_names(root)
    found = _find_images(root, share.name)
    paths = [path for path in found if share.has(os.path.relpath(path, root))]
    if not paths:
      raise splits.empty_share(split, root, len(found))
    self._paths, numbers = paths, {path: number for number, path in enumerate(found, 1)}
    self.image_ids = tuple(numbers[path] for path in paths)
    texts = [_label_path(path) for path in paths]
    if not any(map(os.path.isfile, texts)):
      raise ValueError(
        f'none of the {len(paths)} images of split {split!r} of {str(root)!r} has a file of '
        f'objects: {paths[0]!r} needs {texts[0]!r}; expected {LAYOUTS}'
      )
    described = f'split {split!r} of {str(root)!r}'
    self._objects = TextObjects(texts, own, where, class_names, described, other_classes)
    self.num_objects, self.masks_missing = self._objects.counts, self._objects.masks_missing
    self.class_names, self.category_ids = self._objects.class_names, self._objects.category_ids

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {'image': pathlib.Path(self._paths[index]).read_bytes(), 'key': self._paths[index]}

  def image_size(self, index: int) -> tuple[int, int]:
    """See `sources.Source`."""
    return image_ops.size_in_header(self._paths[index], self._upright)

  def annotations(self, index: int) -> annotations.Objects:
    """See `sources.Source`."""
    return self._objects.of_image(index, self.image_size(index))


def find_splits(root: pathlib.Path) -> list[str]:
  """Names of the splits of a folder: those that its table names, or those that folders are for."""
  table = _read_table(root)
  named = [name for name in ('train', 'val', 'valid', 'test') if table.get(name)]
  if named:
    return named
  images = root / _IMAGES
  places = images.glob('*') if images.is_dir() else root.glob(f'*/{_IMAGES}')
  return sorted(
    place.name if images.is_dir() else place.parent.name
    for place in places
    if place.is_dir() and not sources.is_hidden(place.name)
  )


def is_likely(root: pathlib.Path) -> bool:
  """Whether a folder has a table of classes or files of objects, as YOLO's have."""
  texts = (f'{_LABELS}/*.txt', f'{_LABELS}/*/*.txt', f'*/{_LABELS}/*.txt')
  return has_names(root) or any(any(root.glob(pattern)) for pattern in texts)


def has_names(root: pathlib.Path) -> bool:
  """Whether a file of a folder says what its classes are called."""
  return bool(_read_table(root)) or any((root / name).is_file() for name in _LISTS)


def _read_table(root: pathlib.Path) -> dict[str, Any]:
  """What the .yaml of a folder says; nothing where there is none."""
  paths = sorted(path for pattern in _TABLES for path in root.glob(pattern))
  tables = {}
  for path in paths:
    try:
      table = yaml.safe_load(path.read_text(encoding='utf-8-sig'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
      raise ValueError(f'{str(path)!r} is not YAML: {error}') from error
    if isinstance(table, dict) and 'names' in table:
      tables[str(path)] = table | {'file': str(path)}
  if len(tables) > 1:
    raise ValueError(f'both {" and ".join(map(repr, tables))} name classes; remove one')
  return next(iter(tables.values()), {})


def read_names(root: pathlib.Path) -> tuple[tuple[str, ...], str]:
  """Names of the classes, and the file that says them."""
  table = _read_table(root)
  listed = next((root / name for name in _LISTS if (root / name).is_file()), None)
  if table:
    file, names = table['file'], table['names']
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
      names = [names[number] for number in range(len(names))]
    elif not isinstance(names, list):
      raise ValueError(
        f"{file!r}: 'names' must be a list, or say the numbers from 0 on, such as {{0: cat, 1: "
        f'dog}}; got {names!r}'
      )
    if table.get('nc', len(names)) != len(names):
      raise ValueError(f"{file!r}: 'nc' is {table['nc']}, but {len(names)} classes are named")
  elif listed is not None:
    file, names = str(listed), listed.read_text(encoding='utf-8-sig').split('\n')
    names = [name.strip() for name in names if name.strip()]
  else:
    raise ValueError(
      f'nothing says what the classes in {str(root)!r} are called: write '
      f"{str(root / 'data.yaml')!r} with a line such as 'names: [cat, dog]', in the order of their "
      'numbers'
    )
  for name in names:
    if isinstance(name, bool) or not isinstance(name, str | int | float):
      raise ValueError(f"{file!r} has the name {name!r}; put it in quotes: 'no' is read as False")
  names = tuple(map(str, names))
  twice = next((name for name in names if names.count(name) > 1), None)
  if not names or twice is not None:
    raise ValueError(f'{file!r} names {f"{twice!r} more than once" if names else "no classes"}')
  return names, file


def _find_images(root: pathlib.Path, name: str) -> list[str]:
  """Paths of the images of a split."""
  table = _read_table(root)
  places = table.get(name) or []
  places = [places] if isinstance(places, str) else places
  if places:
    given = [_resolve(root, table.get('path'), str(place), table['file']) for place in places]
  else:
    given = [root / _IMAGES / name, root / name / _IMAGES]
    given = [folder for folder in given if folder.is_dir()]
  if not given:
    there = find_splits(root)
    raise config_errors.UnknownName(
      f'{str(root)!r} has no images of split {name!r}, but of {sources.shown(there) or "none"}; '
      f'expected {LAYOUTS} that names classes and, where they are elsewhere, splits',
      name,
      there,
    )
  found: list[str] = []
  for place in given:
    if place.is_dir():
      found += sources.find_files(place)[0]
    else:
      lines = [line.strip() for line in place.read_text().splitlines()]
      found += [str(place.parent / line) for line in lines if line]
  found = list(dict.fromkeys(map(os.path.normpath, found)))
  described = ' and '.join(repr(str(place)) for place in given)
  if not found:
    raise ValueError(f'no images in {described} ({", ".join(sources.IMAGE_EXTENSIONS)})')
  missing = [path for path in found if not os.path.isfile(path)]
  if missing:
    raise ValueError(
      f'{described} names {len(missing)} of {len(found)} images that are not there, such as '
      f'{missing[0]!r}; add them or remove their lines'
    )
  return found


def _resolve(root: pathlib.Path, base: str | None, place: str, table: str) -> pathlib.Path:
  """What a table names: below the folder, wherever the table was written."""
  inside = place.removeprefix('./')
  while inside.startswith('../'):
    inside = inside.removeprefix('../')
  tried = [root / (base or '') / place, root / place, root / inside]
  for path in tried:
    if path.exists():
      return path
  raise ValueError(
    f'{table!r} names {place!r}, which is not there: neither '
    f'{" nor ".join(dict.fromkeys(repr(str(path)) for path in tried))}; correct the table'
  )


def _label_path(image: str) -> str:
  """The file of the objects of an image: in `labels` instead of the last `images`, or beside it."""
  parts = list(pathlib.Path(image).with_suffix('.txt').parts)
  if _IMAGES in parts[:-1]:
    parts[len(parts) - 1 - parts[::-1].index(_IMAGES)] = _LABELS
  return str(pathlib.Path(*parts))


def _read_rows(
  path: str, num_classes: int, names: str
) -> Iterator[tuple[str, int, tuple[float, ...], list[float]]]:
  """Rows of a file: what messages call it, class, corners of the box, corners of the polygon."""
  if not os.path.isfile(path):
    return
  with open(path, encoding='utf-8-sig', errors='replace') as file:
    lines = file.read().splitlines()
  for number, line in enumerate(lines, 1):
    entries = line.split()
    if not entries:
      continue
    where = f'{path!r}, line {number}'
    try:
      values = [float(entry) for entry in entries]
    except ValueError as error:
      raise ValueError(f'{where} is {line[:80]!r}; expected numbers: {_ROW}') from error
    label, shares = values[0], values[1:]
    if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
      more = '; a sixth may be a score: these are detections' if len(shares) == 5 else ''
      raise ValueError(f'{where} has {len(values)} numbers; expected {_ROW}{more}')
    if not label.is_integer() or not 0 <= label < num_classes:
      raise ValueError(
        f'{where} has the class {entries[0]}, but {names!r} names {num_classes}, which are called '
        f'0 to {num_classes - 1}; correct one of both'
      )
    inside = all(-_TOLERANCE <= share <= 1 + _TOLERANCE for share in shares)
    if not inside or (len(shares) == 4 and min(shares[2:]) < 0):
      wrong = [f'{share:g}' for share in shares if not 0 <= share <= 1][:1]
      raise ValueError(
        f'{where} has {wrong[0] if wrong else line[:80]!r}, where shares of the width and the '
        'height of the image are expected, from 0 to 1, not pixels'
      )
    if len(shares) == 4:
      x, y, width, height = shares
      box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
      yield where, int(label), box, []
    else:
      x, y = shares[::2], shares[1::2]
      yield where, int(label), (min(x), min(y), max(x), max(y)), shares
