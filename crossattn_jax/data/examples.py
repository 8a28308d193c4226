"""Small data sets to begin with, in the folders and files that people have of their own.

All are made here, without a network; what is written depends on size and seed alone.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import csv
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

from hotcoco import mask as coco_mask
import numpy as np
from PIL import Image, ImageDraw

from crossattn_jax import config_errors
from crossattn_jax.data import sources
from crossattn_jax.data.retrieval import word_pieces
from crossattn_jax.data.scene_points import point_files
from crossattn_jax.data.scenes import captions, drawings, rooms, shapes

_TRAIN_SHARE = 0.8
# Of scenes, but for sketches.
_OBJECTS = ('star', 'heart', 'fish', 'cup')
_SKETCHED = ('star', 'heart', 'fish', 'cup', 'house', 'moon', 'key', 'tree')
# Of each class.
_DRAWINGS = 30
# Photographs of a room.
_VIEWS = 4
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
  """What is in a folder and below: a line for folders that differ in numbers, of the first few."""
  counts = collections.defaultdict(collections.Counter)
  for path in sorted(path for path in folder.rglob('*') if path.is_file()):
    name = re.sub(r'\d+', '*', path.parent.relative_to(folder).as_posix())
    counts[name][path.suffix] += 1
  lines = [f'{name}/: {sources.counted(count)}' for name, count in counts.items()]
  more = len(lines) - _SHOWN_FOLDERS
  return [*lines[:_SHOWN_FOLDERS], f'... and {more} folders more'] if more > 1 else lines


# So that both splits have something, whatever is counted.
_LEAST = 10


def _divided(size: int, splits: tuple[str, str] = ('train', 'val')) -> Iterator[tuple[str, range]]:
  """Splits, and the numbers of what is in them; files count from 0 in each."""
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


def _write_boxes(folder: pathlib.Path, size: int, seed: int) -> None:
  """Photos of objects, and COCO's file of each split."""
  options = {'size': 160, 'drawn': (2, 5), 'radii': (0.09, 0.2), 'turn': 0.5}
  _write_coco(folder, size, seed, options | {'textures': ('plain', 'striped')})


def _write_coco(
  folder: pathlib.Path,
  size: int,
  seed: int,
  scenes: dict[str, Any],
  names: Sequence[str] = _OBJECTS,
) -> None:
  """Photos, and boxes and masks of what can be seen: `train/`, `annotations/instances_train.json`.

  Args:
    folder: to write into.
    size: photos.
    seed: of them.
    scenes: see `shapes.render_scene`.
    names: of the classes.
  """
  (folder / 'annotations').mkdir()
  for split, numbers in _divided(size):
    (folder / split).mkdir()
    images, annotations = [], []
    for place, number in enumerate(numbers):
      scene = shapes.render_scene(seed, number, shown=names, least_seen=2, **scenes)
      path = _save(scene.image, folder / split / f'{place:04d}.jpg')
      height, width = scene.semantic.shape
      image = {'id': 1 + number, 'file_name': path.name, 'height': height, 'width': width}
      images.append(image)
      for instance, item in enumerate(scene.objects, start=1):
        top, left, bottom, right = item.box
        visible = scene.instances == instance
        mask = coco_mask.encode(np.asfortranarray(visible, np.uint8))
        annotation = {
          'id': 1 + len(annotations),
          'image_id': image['id'],
          'category_id': 1 + names.index(_name(item)),
          'bbox': [left, top, right - left, bottom - top],
          'area': int(visible.sum()),
          'segmentation': mask | {'counts': mask['counts'].decode()},
          'iscrowd': 0,
        }
        annotations.append(annotation)
    categories = [{'id': 1 + label, 'name': name} for label, name in enumerate(names)]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def _write_masks(folder: pathlib.Path, size: int, seed: int) -> None:
  """Photos, a class for each of their pixels, and what the values there mean."""
  names = ('ground', *_OBJECTS)
  values = np.zeros(1 + len(shapes.ALL_SHAPES), np.uint8)
  for value, name in enumerate(_OBJECTS):
    values[1 + shapes.ALL_SHAPES.index(name)] = 1 + value
  rows = [
    f'{value},{name},#{bytes(shapes.PALETTE[value]).hex()}' for value, name in enumerate(names)
  ]
  (folder / 'classes.csv').write_text('\n'.join(['value,name,color', *rows, '']))
  for split, numbers in _divided(size):
    images, masks = (folder / kind / split for kind in ('images', 'masks'))
    for kind in (images, masks):
      kind.mkdir(parents=True)
    for place, number in enumerate(numbers):
      scene = shapes.render_scene(seed, number, 64, shown=_OBJECTS, turn=0.5)
      _save(scene.image, images / f'{place:04d}.jpg')
      mask = Image.fromarray(values[scene.semantic])
      mask.putpalette(shapes.PALETTE.ravel().tolist())
      mask.save(masks / f'{place:04d}.png')


def _write_pairs(folder: pathlib.Path, size: int, seed: int) -> None:
  """Visible and infrared photos at night, and boxes in YOLO's files.

  A third of the objects is in the dark, a third is as warm as the ground.
  """
  names = [f'  {label}: {name}' for label, name in enumerate(_OBJECTS)]
  (folder / 'data.yaml').write_text('\n'.join(['names:', *names, '']))
  options = {'drawn': (3, 6), 'radii': (0.1, 0.2), 'dark': 0.35, 'tepid': 0.6, 'turn': 0.5}
  for split, numbers in _divided(size):
    visible, infrared, labels = (
      folder / kind / split for kind in ('visible', 'infrared', 'labels')
    )
    for kind in (visible, infrared, labels):
      kind.mkdir(parents=True)
    for place, number in enumerate(numbers):
      scene = shapes.render_scene(seed, number, 96, shown=_OBJECTS, least_seen=3, **options)
      _save(scene.image, visible / f'{place:04d}.jpg')
      _save(scene.thermal, infrared / f'{place:04d}.jpg')
      lines = []
      for item in scene.objects:
        top, left, bottom, right = np.array(item.box) / len(scene.image)
        shares = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        lines.append(' '.join([str(_OBJECTS.index(_name(item))), *(f'{x:.6f}' for x in shares)]))
      (labels / f'{place:04d}.txt').write_text('\n'.join([*lines, '']))


def _write_captions(folder: pathlib.Path, size: int, seed: int) -> None:
  """Photos and five sentences of each, in a table for each split; their words."""
  (folder / 'images').mkdir()
  for split, numbers in _divided(size):
    rows = []
    for number in numbers:
      scene = shapes.render_scene(seed, number, 64, drawn=(1, 3), textures=('plain', 'striped'))
      name = f'images/{number:04d}.jpg'
      _save(scene.image, folder / name)
      items = [captions.Item(_name(item), item.color, item.texture) for item in scene.objects]
      rows += [(name, sentence) for sentence in captions.captions(scene.caption, items)]
    with (folder / f'{split}.csv').open('w', newline='') as file:
      csv.writer(file).writerows([('file', 'caption'), *rows])
    if split == 'train':
      words = word_pieces.words_of(sentence for _, sentence in rows)
      (folder / 'vocab.txt').write_text('\n'.join([*words, '']))


def _write_points(folder: pathlib.Path, size: int, seed: int) -> None:
  """Scans of rooms with a label for each point, photographs, and tags: what rooms hold."""
  (folder / 'classes.txt').write_text('\n'.join([*rooms.CLASS_NAMES, '']))
  tags = []
  for split, numbers in _divided(size):
    (folder / split).mkdir()
    for place, number in enumerate(numbers):
      room, name = rooms.make_room(seed, number), f'{split}_{place:02d}'
      scan = rooms.scan(room, seed, number, 200.0)
      scene = point_files.Scene(np.round(scan.points, 3), scan.colors, scan.labels)
      point_files.write_ply(folder / split / f'{name}.ply', scene)
      held = np.unique(scan.labels[scan.labels >= 0])
      tags.append(','.join([name, *(rooms.CLASS_NAMES[label] for label in held)]))
      photos = folder / split / name / 'images'
      photos.mkdir(parents=True)
      for view in range(_VIEWS):
        _save(rooms.photograph(room, seed, number, view, (48, 64)), photos / f'{view}.jpg')
  (folder / 'tags.csv').write_text('\n'.join([*tags, '']))


def _write_sketches(folder: pathlib.Path, size: int, seed: int) -> None:
  """Photos with boxes in `photos/`, and drawings of their classes in `sketches/star/07.png`."""
  photos = folder / 'photos'
  photos.mkdir()
  options = {'size': 96, 'drawn': (3, 5), 'radii': (0.13, 0.19), 'turn': 0.3}
  options |= {'textures': ('plain',), 'least_visible': 0.7}
  _write_coco(photos, size, seed, options, _SKETCHED)
  for name in _SKETCHED:
    drawn = folder / 'sketches' / name
    drawn.mkdir(parents=True)
    for number in range(_DRAWINGS):
      image = Image.new('L', (300, 300), 255)
      for stroke in drawings.drawing(seed, name, number):
        points = [tuple(point) for point in (stroke + 20).tolist()]
        ImageDraw.Draw(image).line(points, 0, 5, 'curve')
      image.save(drawn / f'{number:02d}.png')


def _name(item: shapes.SceneObject) -> str:
  return shapes.ALL_SHAPES[item.label - 1]


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
    "photos of objects, and their boxes and masks in COCO's files",
    _write_boxes,
    400,
    'photos',
    (
      '--config=retinanet_shapes',
      '--config.dataset.name=detection_folder',
      _DATA_DIR,
      '--config.num_epochs=24',
    ),
  ),
  'masks': Kind(
    'photos, and masks that say what each pixel shows',
    _write_masks,
    600,
    'photos',
    ('--config=semantic_fpn_shapes', '--config.dataset.name=segmentation_folder', _DATA_DIR),
  ),
  'pairs': Kind(
    "visible and infrared photos of the same places, and boxes in YOLO's files",
    _write_pairs,
    600,
    'pairs',
    (
      '--config=icafusion_shapes',
      '--config.dataset.name=pair_folder',
      _DATA_DIR,
      '--config.num_epochs=16',
    ),
  ),
  'captions': Kind(
    'photos, and sentences that describe them',
    _write_captions,
    1500,
    'photos',
    (
      '--config=mmca_shapes',
      '--config.dataset.name=caption_folder',
      _DATA_DIR,
      '--config.dataset.eval_split=val',
      '--config.dataset.num_regions=10',
    ),
  ),
  'points': Kind(
    'scans of rooms with a label for each point, photographs and tags',
    _write_points,
    100,
    'rooms',
    (
      '--config=minkunet_rooms:supervised',
      '--config.dataset.name=point_folder',
      _DATA_DIR,
      '--config.num_epochs=25',
    ),
  ),
  'sketches': Kind(
    "photos of objects with boxes in COCO's files, and drawings of such objects",
    _write_sketches,
    1000,
    'photos',
    (
      '--config=sketch_localizer_shapes',
      '--config.dataset.name=detection_folder',
      '--config.dataset.data_dir={folder}/photos',
      '--config.dataset.sketches.name=sketch_folder',
      '--config.dataset.sketches.data_dir={folder}/sketches',
      '--config.dataset.unseen_classes=()',
    ),
  ),
}
