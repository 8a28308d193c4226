import json

from ml_collections import ConfigDict
import numpy as np
from PIL import Image, ImageDraw
import pytest

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
