"""Small data sets to begin with, in the folders and files that people have of their own.

All are made here, without a network; what is written depends on size and seed alone.
"""

import collections
from collections.abc import Callable, Iterator
import dataclasses
import json
import os
import pathlib

from hotcoco import mask as coco_mask
import numpy as np
from PIL import Image

from crossattn_jax import config_errors
from crossattn_jax.data import sources
from crossattn_jax.data.scenes import shapes

_TRAIN_SHARE = 0.8
# Of the folders that are told of.
_SHOWN_FOLDERS = 6


@dataclasses.dataclass(frozen=True)
class Kind:
  """What there is an example of.

  Attributes:
    shows: what is written, for people.
    write: writes it into a folder that is there; takes size and seed, too.
    size: how many of what is counted, unless it is asked for.
    unit: what is counted.
    training: flags of the command that trains on it; '{folder}' stands for the folder.
  """

  shows: str
  write: Callable[[pathlib.Path, int, int], None]
  size: int
  unit: str
  training: tuple[str, ...]


def write(
  kind: str, folder: str | os.PathLike[str], size: int | None = None, seed: int = 0
) -> pathlib.Path:
  """Writes an example.

  Args:
    kind: one of `KINDS`.
    folder: that is empty or not there yet.
    size: how many images, pairs, scans; by default the kind's own number.
    seed: of what is drawn.

  Returns:
    The folder.

  Raises:
    UnknownName: there is no such kind.
    ValueError: the folder is not empty, or the size is too small to be divided.
  """
  if kind not in KINDS:
    raise config_errors.UnknownName(
      f'unknown kind of examples {kind!r}; {config_errors.near_names(kind, KINDS)}there are '
      f'{", ".join(KINDS)}',
      kind,
      KINDS,
    )
  size = KINDS[kind].size if size is None else size
  if size < _LEAST:
    raise ValueError(f'--size={size} is too small: expected at least {_LEAST} {KINDS[kind].unit}')
  folder = pathlib.Path(folder).expanduser()
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(f'{str(folder)!r} is there and not empty; give a folder that is new or empty')
  folder.mkdir(parents=True, exist_ok=True)
  KINDS[kind].write(folder, size, seed)
  return folder


def listing(folder: pathlib.Path) -> list[str]:
  """What is in a folder and below: a line for each folder that has files, of the first few."""
  counts = collections.defaultdict(collections.Counter)
  for path in sorted(path for path in folder.rglob('*') if path.is_file()):
    counts[path.parent.relative_to(folder).as_posix()][path.suffix] += 1
  lines = [f'{name}/: {sources.counted(count)}' for name, count in counts.items()]
  more = len(lines) - _SHOWN_FOLDERS
  return [*lines[:_SHOWN_FOLDERS], f'... and {more} folders more'] if more > 1 else lines


# So that both splits have something, whatever is counted.
_LEAST = 10


def _divided(size: int, splits: tuple[str, str] = ('train', 'val')) -> Iterator[tuple[str, range]]:
  """Splits, and the numbers of what is in them."""
  train = round(size * _TRAIN_SHARE)
  yield from zip(splits, (range(train), range(train, size)), strict=True)


def _write_images(folder: pathlib.Path, size: int, seed: int) -> None:
  """Handwritten digits of scikit-learn, a folder for each: `train/4/0007.png`."""
  from sklearn import datasets as sklearn_datasets  # It takes seconds to load.

  digits = sklearn_datasets.load_digits()
  order = np.random.default_rng(seed).permutation(len(digits.target))
  if size > len(order):
    raise ValueError(f'--size={size}: there are {len(order)} digits')
  for split, numbers in _divided(size, ('train', 'test')):
    for number in order[numbers].tolist():
      path = folder / split / str(digits.target[number]) / f'{number:04d}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.round(digits.images[number] * (255 / 16)).astype(np.uint8)).save(path)


_BOX_CLASSES = ('star', 'heart', 'fish', 'cup')


def _write_boxes(folder: pathlib.Path, size: int, seed: int) -> None:
  """Photos of objects, and COCO's file of each split: boxes, and masks of what can be seen."""
  categories = [{'id': 1 + n, 'name': name} for n, name in enumerate(_BOX_CLASSES)]
  for split, numbers in _divided(size):
    (folder / split).mkdir()
    images, annotations = [], []
    for number in numbers:
      scene = shapes.render_scene(
        seed,
        number,
        160,
        drawn=(2, 6),
        least_seen=2,
        radii=(0.08, 0.2),
        shown=_BOX_CLASSES,
        turn=0.5,
      )
      name = _save(scene.image, folder / split / f'{number:04d}.jpg').name
      height, width = scene.semantic.shape
      images.append({'id': 1 + number, 'file_name': name, 'height': height, 'width': width})
      for place, item in enumerate(scene.objects):
        top, left, bottom, right = item.box
        mask = coco_mask.encode(np.asfortranarray(scene.instances == place + 1, np.uint8))
        annotations.append(
          {
            'id': 1 + len(annotations),
            'image_id': 1 + number,
            'category_id': 1 + _BOX_CLASSES.index(shapes.ALL_SHAPES[item.label - 1]),
            'bbox': [left, top, right - left, bottom - top],
            'area': int((scene.instances == place + 1).sum()),
            'segmentation': mask | {'counts': mask['counts'].decode()},
            'iscrowd': 0,
          }
        )
    path = folder / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    path.write_text(json.dumps(content))


def _save(pixels: np.ndarray, path: pathlib.Path) -> pathlib.Path:
  """Saves an image as cameras do; returns the path."""
  Image.fromarray(pixels).save(path, quality=92)
  return path


_DATA_DIR = '--config.dataset.data_dir={folder}'
KINDS = {
  'images': Kind(
    'handwritten digits, a folder of images for each',
    _write_images,
    1797,
    'images',
    ('--config=crossvit_digits', '--config.dataset.name=image_folder', _DATA_DIR),
  ),
  'boxes': Kind(
    'photos of objects, and their boxes and masks in files of COCO',
    _write_boxes,
    400,
    'photos',
    ('--config=retinanet_shapes', '--config.dataset.name=detection_folder', _DATA_DIR),
  ),
}
