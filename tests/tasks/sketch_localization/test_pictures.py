"""Pictures show what was found, by what, and where the photo looks."""

import dataclasses
import itertools

from etils import epath
import numpy as np
from PIL import Image
import pytest

from crossattn_jax.tasks.detection import pictures as detection
from crossattn_jax.tasks.sketch_localization import pictures

BOX = np.array([[10.0, 20.0, 60.0, 90.0]])
FOUND = detection.Objects(BOX, np.zeros(1, int), np.array([0.8]))


def sample(**fields):
  image = np.full((100, 120, 3), 40, np.uint8)
  sketch = np.zeros((1, 32, 32, 3), np.uint8)
  sketch[:, 10:20, 10:20] = 255
  looks = {f'stage_{i}': np.linspace(0.5, 2, 48 * (i + 1)).reshape(6, -1) for i in range(4)}
  options = {'sketches': sketch, 'looks': looks} | fields
  return pictures.Sample(image, FOUND, **options)


def test_sketches_lie_in_the_corner_that_hides_least():
  boxes = np.array([[0.0, 0, 120, 30], [0, 60, 60, 100]])  # But for the lower right.
  found = detection.Objects(boxes, np.zeros(2, int), np.array([0.9, 0.8]))
  picture = np.asarray(pictures.overlaid(sample(), found, ['match'])).astype(int)
  rows, columns = np.nonzero((np.abs(picture - (255, 165, 0)) < 5).all(axis=-1))
  assert rows.max() == picture.shape[0] - 1
  assert columns.max() == picture.shape[1] - 1
  assert rows.min() > 0.6 * picture.shape[0]


@pytest.mark.parametrize('count', [7, 200])
def test_many_sketches_do_not_fill_the_width(count):
  many = sample(sketches=np.zeros((count, 32, 32, 3), np.uint8))
  picture = np.asarray(pictures.overlaid(many, FOUND, ['match'])).astype(int)
  _, columns = np.nonzero((np.abs(picture - (255, 165, 0)) < 5).all(axis=-1))
  assert 0.5 < np.ptp(columns) / picture.shape[1] < 0.65


@pytest.mark.parametrize('stages', [1, 4])
def test_a_picture_has_the_photo_and_its_looks(tmp_path, stages):
  path = epath.Path(tmp_path / 'a.png')
  looks = dict(itertools.islice(sample().looks.items(), stages))
  pictures.found_and_looks(path, sample(looks=looks), ['match'])
  width, height = Image.open(path).size
  assert width > 2 * height


def test_a_sheet_shows_found_and_true(tmp_path):
  path = epath.Path(tmp_path / 'a.png')
  shown = dataclasses.replace(sample(), true=detection.Objects(BOX, np.zeros(1, int)), name='cup')
  pictures.sheet(path, [shown, shown], ['match'])
  width, height = Image.open(path).size
  assert width > 600
  assert height > 600
