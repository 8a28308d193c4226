import json

from ml_collections import ConfigDict
import numpy as np
from PIL import Image, ImageDraw
import pytest

from crossattn_jax.data.sketch_localization import batches, sources

# Drawings of each class.
COUNT = 40


def drawing(number):
  """A simplified drawing, in which its number can be read."""
  return [[[0, 255, number], [0, number, 255]]]


def write_lines(path, count=COUNT, first=0):
  lines = [
    json.dumps({'word': path.stem, 'key_id': str(1000 + number), 'drawing': drawing(number)})
    for number in range(first, first + count)
  ]
  path.write_text('\n'.join(lines) + '\n')


def write_picture(path, number):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.new('L', (64, 64), 255)
  ImageDraw.Draw(image).line([(8, 8), (56, 8 + number), (8, 56)], 0, 3)
  image.save(path)


@pytest.fixture
def quickdraw_dir(tmp_path):
  """QuickDraw's simplified drawings of three classes."""
  folder = tmp_path / 'quickdraw'
  folder.mkdir()
  for name in ('cat', 'dog', 'hot dog'):
    write_lines(folder / f'{name}.ndjson')
  return folder


@pytest.fixture
def stroke3_dir(tmp_path):
  """Two classes as stroke-3."""
  folder = tmp_path / 'stroke3'
  folder.mkdir()
  for name in ('cat', 'dog'):
    for part, count in (('train', 5), ('valid', 3)):
      starts = np.arange(count + 1) * 2
      steps = np.tile([[7, 1, 0], [1, 7, 1]], (count, 1)).astype(np.int16)
      steps[::2, 0] = np.arange(count)
      np.save(folder / f'{name}.{part}.ptr.npy', starts)
      np.save(folder / f'{name}.{part}.strokes.npy', steps)
  return folder


@pytest.fixture
def pictures_dir(tmp_path):
  """A folder of pictures for each of two classes."""
  folder = tmp_path / 'pictures'
  for name in ('cat', 'hot_dog'):
    for number in range(6):
      write_picture(folder / name / f'{number}.png', number)
  return folder


@pytest.fixture
def sketches_config():
  """Makes `config.dataset.sketches` of a folder."""

  def make(name, data_dir):
    return ConfigDict({'name': name, 'data_dir': None if data_dir is None else str(data_dir)})

  return make


# Boxes x, y, width, height of each photo of 60 x 80 pixels (height x width), by class; photos 3 and
# 4 show nothing that can be asked for.
PHOTOS = (
  {'cat': [[0, 0, 20, 20], [30, 10, 10, 40]], 'person': [[5, 5, 9, 9]]},
  {'dog': [[10, 0, 30, 30]], 'cat': [[50, 20, 20, 20]]},
  {'hot dog': [[0, 0, 16, 16]], 'dog': [[40, 30, 20, 20], [0, 30, 10, 10]]},
  {'person': [[0, 0, 50, 50]]},
  {'dog crowd': [[0, 0, 50, 50]], 'cat': [[10, 10, 0, 12]]},
  {'hot dog': [[20, 20, 30, 30]]},
)
CATEGORIES = ('cat', 'person', 'dog', 'hot dog')


@pytest.fixture
def coco_dir(tmp_path):
  """A COCO folder in miniature, of which training and validation have the same photos."""
  root = tmp_path / 'coco'
  (root / 'annotations').mkdir(parents=True)
  boxes = [
    (photo, name, box)
    for photo, objects in enumerate(PHOTOS)
    for name, own in objects.items()
    for box in own
  ]
  content = {
    'images': [
      {'id': 10 + photo, 'file_name': f'{photo}.jpg', 'height': 60, 'width': 80}
      for photo in range(len(PHOTOS))
    ],
    'categories': [{'id': 1 + place, 'name': name} for place, name in enumerate(CATEGORIES)],
    'annotations': [
      {
        'id': 100 + number,
        'image_id': 10 + photo,
        'category_id': 1 + CATEGORIES.index(name.removesuffix(' crowd')),
        'bbox': box,
        'area': box[2] * box[3],
        'iscrowd': int(name.endswith('crowd')),
      }
      for number, (photo, name, box) in enumerate(boxes)
    ],
  }
  for split in ('train2017', 'val2017'):
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
    (root / split).mkdir()
    for photo in range(len(PHOTOS)):
      Image.new('RGB', (80, 60), (40 * photo, 99, 0)).save(root / split / f'{photo}.jpg')
  return root


@pytest.fixture
def coco_config(coco_dir, quickdraw_dir):
  """COCO's photos and QuickDraw's drawings; hot dogs are not learnt."""
  config = batches.default_config()
  config.data_dir, config.sketches.data_dir = str(coco_dir), str(quickdraw_dir)
  config.image_size, config.max_boxes, config.sketches.size = (64, 96), 4, 32
  config.class_names, config.unseen_classes = ('dog', 'hot dog', 'cat'), ('hot dog',)
  return config


@pytest.fixture(scope='session')
def scenes_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('scenes'))


@pytest.fixture
def scenes_config(scenes_dir):
  """Scenes and drawings of their shapes; stars and crosses are not learnt."""
  config = batches.default_config()
  config.name = config.sketches.name = 'shape_scenes/tiny'
  config.data_dir = scenes_dir
  config.image_size, config.max_boxes, config.sketches.size = (64, 64), 4, 64
  config.sketches.count = 2
  config.unseen_classes = ('star', 'cross')
  sources.complete(config)
  return config
