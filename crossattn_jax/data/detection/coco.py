"""COCO files: a JSON of images, categories and annotations, beside a folder of images.

Format: https://cocodataset.org/#format-data. A file may be large (COCO's own has 450 MB): numbers
are kept in arrays, masks stay in the file until they are asked for.
"""

import array
from collections.abc import Collection, Iterator, Sequence
import dataclasses
import functools
import json
import math
import mmap
import os
import re
from typing import Any

import numpy as np

from crossattn_jax.data import sources
from crossattn_jax.data.detection import annotations

_LARGEST_ID = 2**63 - 1
# Of files that Windows has written.
_MARK = '\xef\xbb\xbf'
_KEYS = ('images', 'annotations', 'categories')
# What other JSON files that people have are known by.
_OTHER_FORMATS = {
  'shapes': 'a LabelMe file of one image; convert the folder, as with labelme2coco',
  '_via_img_metadata': 'a project of the VGG annotator; export it as COCO',
  '_via_settings': 'a project of the VGG annotator; export it as COCO',
}


@dataclasses.dataclass(frozen=True, eq=False)
class CocoFile:
  """What a COCO file says, but for its masks, which `segmentation` reads.

  Attributes:
    path: of the file.
    categories: (id, name), in the order of the ids.
    image_ids: int64 `[images]`, in the file's order.
    file_names: of the images.
    sizes: int64 `[images, 2]`: (height, width) of each.
    image: int64 `[annotations]`: the place of each annotation's image. They are in the order of
      their images, and of the file within each.
    category: int64 `[annotations]`: the place of its category.
    ids: int64 `[annotations]`.
    boxes: float64 `[annotations, 4]`: corners.
    area: float64 `[annotations]`.
    crowd: bool `[annotations]`.
    has_mask: bool `[annotations]`.
    spans: int64 `[annotations, 2]`: where in the file each begins and ends.
  """

  path: str
  categories: tuple[tuple[int, str], ...]
  image_ids: np.ndarray
  file_names: Sequence[str]
  sizes: np.ndarray
  image: np.ndarray
  category: np.ndarray
  ids: np.ndarray
  boxes: np.ndarray
  area: np.ndarray
  crowd: np.ndarray
  has_mask: np.ndarray
  spans: np.ndarray

  def only(self, kept: np.ndarray) -> 'CocoFile':
    """The file with some of its annotations, bool `[annotations]`."""
    names = ('image', 'category', 'ids', 'boxes', 'area', 'crowd', 'has_mask', 'spans')
    return dataclasses.replace(self, **{name: getattr(self, name)[kept] for name in names})

  def segmentations(self, chosen: Sequence[int]) -> list[annotations.Segmentation]:
    """Masks of annotations, by their places.

    Raises:
      ValueError: the file is not what it was when it was opened.
    """
    found = []
    with open(self.path, 'rb') as file:
      for place in chosen:
        start, end = self.spans[place]
        file.seek(start)
        try:
          annotation = json.loads(file.read(end - start))
        except ValueError:
          annotation = {}
        if not isinstance(annotation, dict) or annotation.get('id') != self.ids[place]:
          raise ValueError(f'{self.path!r} has changed since it was opened; start again')
        found.append(annotations.read(annotation['segmentation']))
    return found


class Masks(Sequence[annotations.Segmentation]):
  """Masks of annotations, read when they are asked for: few uses of objects need them."""

  def __init__(self, file: CocoFile, places: Sequence[int]):
    """The masks of annotations of a file, by their places."""
    self._file, self._places = file, places

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> annotations.Segmentation:
    (segmentation,) = self._file.segmentations([self._places[index]])
    return segmentation


def read(path: str | os.PathLike[str]) -> CocoFile:
  """Reads a file, or returns what was read of it before.

  Raises:
    ValueError: the file is not COCO's, or what it says cannot be; the message names the file, and
      the id of what is wrong.
  """
  path = os.path.abspath(path)
  state = os.stat(path)
  return _read(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=4)
def _read(path: str, *state: int) -> CocoFile:
  del state  # Another state is another file.
  return _Reader(path).result()


class _Reader:
  """Collects what a file says, then checks it as a whole: images may come after annotations."""

  def __init__(self, path: str):
    self._path = path
    self._images: list[tuple[int, str, int, int]] = []
    self._categories: dict[int, tuple[str, str | None]] = {}
    # Of each annotation: id, image, category, crowd, start, end, the mask's height and width (0
    # for polygons, -1 for none); x, y, width, height, area (NaN where the file does not say it).
    self._whole, self._real = array.array('q'), array.array('d')
    add = {'images': self._image, 'categories': self._category, 'annotations': self._annotation}
    found = set()
    text = _text(path)
    for key, value, start, end in _elements(path, text):
      found.add(key)
      if key not in add or value is None:
        continue
      if not isinstance(value, dict):
        raise self._error(f'{key!r} hold {value!r}, where an object is expected')
      if key != 'annotations' and not text[start:end].isascii():
        value = json.loads(text[start:end].encode('latin-1'))
      add[key](value, start, end)
    self._check_keys(found)

  def _error(self, problem: str) -> ValueError:
    return ValueError(f'{self._path!r}: {problem}')

  def _check_keys(self, found: Collection[str]) -> None:
    missing = [key for key in _KEYS if key not in found]
    other = next((what for key, what in _OTHER_FORMATS.items() if key in found), None)
    if missing and other:
      raise ValueError(f'{self._path!r} is {other}')
    if missing:
      raise ValueError(
        f'{self._path!r} has no {missing[0]!r}, but {sources.shown(sorted(found)) or "nothing"}; a '
        f'COCO file has {", ".join(_KEYS)}'
      )
    for key, entries in (('images', self._images), ('categories', self._categories)):
      if not entries:
        raise self._error(f'{key!r} is empty')
    if not self._whole:
      raise self._error("'annotations' is empty: there is nothing to learn or to compare with")

  def _image(self, value: dict[str, Any], start: int, end: int) -> None:
    del start, end
    number = self._id(value, 'image')
    name, height, width = (value.get(key) for key in ('file_name', 'height', 'width'))
    if not isinstance(name, str) or not name:
      raise self._error(f"image {number} has no 'file_name'")
    for key, side in (('height', height), ('width', width)):
      if not isinstance(side, int | float) or side != (side // 1) or side < 1:
        raise self._error(f'image {number} ({name!r}) has the {key} {side!r}; expected its pixels')
    self._images.append((number, name, int(height), int(width)))

  def _category(self, value: dict[str, Any], start: int, end: int) -> None:
    del start, end
    number, name = self._id(value, 'category'), value.get('name')
    if not isinstance(name, str) or not name.strip():
      raise self._error(f"category {number} has no 'name'")
    if number in self._categories:
      first = self._categories[number][0]
      raise self._error(f'categories {first!r} and {name!r} have the same id {number}')
    self._categories[number] = name.strip(), value.get('supercategory')

  def _annotation(self, value: dict[str, Any], start: int, end: int) -> None:
    number = self._id(value, 'annotation')
    where = f'annotation {number}'
    image = self._id(value, where, 'image_id')
    if 'category_id' not in value:
      raise self._error(
        f"{where} has no 'category_id': expected instances, no captions and no panoptic segments"
      )
    category = self._id(value, where, 'category_id')
    try:
      segmentation = annotations.read(value.get('segmentation'))
      box = self._box(value.get('bbox'), segmentation)
      area = value.get('area')
      area = math.nan if area is None else _number(area, f'the area {area!r}; expected pixels')
    except ValueError as error:
      raise self._error(f'{where} of image {image} has {error}; correct or remove it') from error
    height, width = (-1, -1) if segmentation is None else (0, 0)
    if isinstance(segmentation, dict):
      height, width = segmentation['size']
    crowd = value.get('iscrowd') or 0
    if crowd not in (0, 1):
      raise self._error(f"{where} has the 'iscrowd' {crowd!r}; expected 0 or 1")
    self._whole.extend((number, image, category, crowd, start, end, height, width))
    self._real.extend((*box, area))

  def _id(self, value: dict[str, Any], what: str, key: str = 'id') -> int:
    number = value.get(key)
    if type(number) is not int or abs(number) > _LARGEST_ID:
      shown = json.dumps(value)
      shown = shown if len(shown) < 100 else f'{shown[:100]}...'
      raise self._error(
        f'{what} has {f"the {key} {number!r}" if key in value else f"no {key!r}"}, where a whole '
        f'number is expected: {shown}'
      )
    return number

  def _box(self, box: Any, segmentation: annotations.Segmentation | None) -> Sequence[float]:
    """Corner and sides."""
    if not box and segmentation is not None:
      left, top, right, bottom = annotations.enclosing_box(segmentation)
      return left, top, right - left, bottom - top
    if not box:
      raise ValueError('neither a bbox nor a segmentation')
    problem = f'the bbox {box!r}; expected [x, y, width, height], with no negative sides'
    if not isinstance(box, list) or len(box) != 4:
      raise ValueError(problem)
    box = [_number(number, problem) for number in box]
    if not math.isfinite(sum(box)) or box[2] < 0 or box[3] < 0:
      raise ValueError(problem)
    return box

  def result(self) -> CocoFile:
    """The file, once everything is known."""
    whole = np.frombuffer(self._whole, np.int64).reshape(-1, 8)
    real = np.frombuffer(self._real, np.float64).reshape(-1, 5)
    ids = whole[:, 0]
    image_ids = np.array([image[0] for image in self._images], np.int64)
    for numbers, what in ((image_ids, 'image'), (ids, 'annotation')):
      unique, counts = np.unique(numbers, return_counts=True)
      if (counts > 1).any():
        number = unique[counts > 1][0]
        names = [f'{image[1]!r}' for image in self._images if image[0] == number]
        named = f' ({", ".join(names)})' if what == 'image' else ''
        raise self._error(
          f'{counts.max()} {what}s have the same id {number}{named}; {(counts > 1).sum()} ids are '
          'taken more than once'
        )
    numbers, names = self._classes(set(whole[:, 2].tolist()))
    image = self._places(whole[:, 1], image_ids, ids, 'images')
    category = self._places(whole[:, 2], np.array(numbers, np.int64), ids, 'categories')
    sizes = np.array([image[2:] for image in self._images], np.int64)
    self._check_geometry(whole, real, sizes[image])
    order = np.argsort(image, kind='stable')
    whole, real = whole[order], real[order]
    found = CocoFile(
      path=self._path,
      categories=tuple(zip(numbers, names, strict=True)),
      image_ids=image_ids,
      file_names=[image[1] for image in self._images],
      sizes=sizes,
      image=image[order],
      category=category[order],
      ids=ids[order],
      boxes=np.concatenate([real[:, :2], real[:, :2] + real[:, 2:4]], axis=1),
      area=real[:, 4].copy(),
      crowd=whole[:, 3] > 0,
      has_mask=whole[:, 6] >= 0,
      spans=whole[:, 4:6].copy(),
    )
    _fill_areas(found)
    return found

  def _classes(self, used: set[int]) -> tuple[list[int], list[str]]:
    """Ids and names of the categories that are classes, in the order of the ids.

    Roboflow adds the group of all classes as a category of its own.
    """
    groups = {group for name, group in self._categories.values() if group not in (None, name)}
    kept = [
      (number, name)
      for number, (name, group) in sorted(self._categories.items())
      if number in used or not (group == 'none' and name in groups)
    ]
    names = [name for _, name in kept]
    for name in names:
      if names.count(name) > 1:
        same = [str(other) for other, called in kept if called == name]
        raise self._error(
          f'categories {" and ".join(same)} have the same name {name!r}; rename or remove one'
        )
    return [number for number, _ in kept], names

  def _places(
    self, numbers: np.ndarray, known: np.ndarray, ids: np.ndarray, what: str
  ) -> np.ndarray:
    order = np.argsort(known, kind='stable')
    place = order[np.searchsorted(known[order], numbers).clip(max=len(known) - 1)]
    wrong = known[place] != numbers
    if wrong.any():
      first = np.argmax(wrong)
      raise self._error(
        f'annotation {ids[first]} names {numbers[first]}, which is none of the {len(known)} {what};'
        f' {_count(wrong)} such; add what they name or remove them'
      )
    return place

  def _check_geometry(self, whole: np.ndarray, real: np.ndarray, sizes: np.ndarray) -> None:
    """Masks of another size, and boxes beyond their images."""

    def described(wrong: np.ndarray) -> str:
      first = np.argmax(wrong)
      height, width = sizes[first]
      return (
        f'image {whole[first, 1]}, which is {height} x {width} pixels (height x width); '
        f'{_count(wrong)} such; correct or remove them'
      )

    wrong = (whole[:, 6] > 0) & (whole[:, 6:] != sizes).any(1)
    if wrong.any():
      number, (height, width) = whole[np.argmax(wrong), 0], whole[np.argmax(wrong), 6:]
      raise self._error(
        f'annotation {number} has a mask of {height} x {width} pixels in {described(wrong)}'
      )
    low, high = real[:, :2], real[:, :2] + real[:, 2:4]
    wrong = ((low >= sizes[:, ::-1]) | (high <= 0)).any(1) & (high > low).all(1)
    if wrong.any():
      number, box = whole[np.argmax(wrong), 0], real[np.argmax(wrong), :4].tolist()
      raise self._error(f'annotation {number} has the bbox {box} outside of {described(wrong)}')


def _described_start(text: str, at: int) -> str:
  """What a text is that is no JSON object."""
  try:
    value, _ = json.JSONDecoder().raw_decode(text[at:])
  except ValueError:
    return 'is not JSON; expected a COCO file'
  first = value[0] if isinstance(value, list) and value else None
  if isinstance(first, dict) and {'image_id', 'score'} <= first.keys():
    return 'is a list of detections, the result of a model; expected the annotations, a COCO file'
  return f'is a {type(value).__name__}, not an object with {", ".join(_KEYS)}: no COCO file'


def _number(value: Any, problem: str) -> float:
  try:
    return float(value)
  except (ValueError, TypeError):
    raise ValueError(problem) from None


def _count(wrong: np.ndarray) -> str:
  return f'{wrong.sum()} of {len(wrong)} annotations are'


def _fill_areas(file: CocoFile) -> None:
  """Areas that a file does not say: those of the masks, or of the boxes without one."""
  unknown = np.isnan(file.area)
  for place in np.flatnonzero(unknown & file.has_mask):
    (segmentation,) = file.segmentations([place])
    file.area[place] = annotations.area(segmentation, tuple(file.sizes[file.image[place]].tolist()))
  unknown = np.isnan(file.area)
  file.area[unknown] = np.prod(file.boxes[unknown, 2:] - file.boxes[unknown, :2], axis=1)


def _text(path: str) -> str:
  """The bytes of a file, each as a character: places in it are places in the file."""
  with open(path, 'rb') as file:
    if not os.fstat(file.fileno()).st_size:
      raise ValueError(f'{path!r} is empty; expected a COCO file')
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
      return str(mapped, 'latin-1')


def _elements(path: str, text: str) -> Iterator[tuple[str, Any, int, int]]:
  """What the lists of a JSON object hold, one after the other, so that not all is kept.

  Yields:
    The list's key, the element, and where it begins and ends. Of every key of the object there is
    one element None before.

  Raises:
    ValueError: the text is no JSON, or no object.
  """
  decode = json.JSONDecoder().raw_decode
  skip = re.compile(r'[ \t\r\n,:]*').match
  at = skip(text, len(_MARK) if text.startswith(_MARK) else 0).end()
  if text[at : at + 1] != '{':
    raise ValueError(f'{path!r} {_described_start(text, at)}')
  try:
    at = skip(text, at + 1).end()
    while text[at] != '}':
      key, at = decode(text, at)
      yield key, None, at, at
      at = skip(text, at).end()
      if text[at] == '[':
        at = skip(text, at + 1).end()
        while text[at] != ']':
          start = at
          value, at = decode(text, start)
          yield key, value, start, at
          at = skip(text, at).end()
        at += 1
      else:
        _, at = decode(text, at)
      at = skip(text, at).end()
  except json.JSONDecodeError as error:
    raise ValueError(f'{path!r} is not JSON: {error.msg} at byte {error.pos}') from error
  except IndexError as error:
    raise ValueError(f'{path!r} ends in the middle, after {len(text)} bytes') from error
