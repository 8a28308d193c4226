"""KAIST's miss rates of detections, from a file of annotations."""

import json
import re

import ml_collections
import numpy as np
import pytest

from crossattn_jax.tasks.paired_detection import miss_rates

NAMES = ('set06/V000/I00019', 'set06/V000/I00039', 'set09/V000/I00019')
# x, y, width, height of who walks in each image.
BOXES = ([100, 100, 40, 100], [200, 100, 30, 80], [300, 200, 20, 60])


class Pairs:
  """A split of three pairs."""

  def __init__(self, names=NAMES, size=(512, 640)):
    self.names, self.size = names, size

  def __len__(self):
    return len(self.names)

  def key(self, index):
    return f'visible/test/{self.names[index].replace("/", "_")}_visible.png'

  def image_size(self, index):
    return self.size


@pytest.fixture
def options(tmp_path):
  images = [
    {'id': number, 'im_name': name, 'height': 512, 'width': 640}
    for number, name in enumerate(NAMES)
  ]
  people = [
    {'id': n, 'image_id': n, 'bbox': box, 'height': box[3], 'occlusion': 0, 'ignore': 0}
    for n, box in enumerate(BOXES)
  ]
  path = tmp_path / 'KAIST_annotation.json'
  path.write_text(json.dumps({'images': images, 'annotations': people[::-1]}))
  return ml_collections.ConfigDict({'annotations': str(path), 'day_pairs': 2, 'official': False})


def found(*images):
  boxes = np.array([BOXES[image] for image in images], float).reshape(-1, 4)
  boxes[:, 2:] += boxes[:, :2]
  count = len(images)
  rows = {'image': np.array(images, int), 'box': boxes, 'score': np.linspace(1, 0.5, count)}
  return rows | {'label': np.zeros(count, int)}


def test_who_is_missed_by_night_counts_by_night(options):
  people = miss_rates.read(options.annotations, Pairs())
  rates = miss_rates.evaluate(found(0, 1), people, 3, options)
  assert rates['miss_rate/day'] == pytest.approx(1e-5)
  assert rates['miss_rate/night'] == pytest.approx(1 + 1e-5)
  assert rates['miss_rate/all'] == pytest.approx(1 / 3 + 1e-5)
  # Nobody is higher than 115 pixels, or hidden.
  assert {*rates} == {f'miss_rate/{x}' for x in ('all', 'day', 'night', 'medium', 'none')}
  assert miss_rates.line(rates) == (
    'miss rates in percent: all 33.33  day 0.00  night 100.00  medium 33.33  none 33.33'
  )
  # To the official script, nobody is in an image without detections, and nobody finds the first.
  options.official = True
  rates = miss_rates.evaluate(found(0, 1), people, 3, options)
  assert rates['miss_rate/all'] == pytest.approx(1 / 2 + 1e-5)


def test_annotations_of_other_images_are_refused(options):
  for pairs, message in (
    (Pairs(NAMES[:2]), 'has 3 images, and the evaluated split 2 pairs'),
    (Pairs((*NAMES[:2], 'set09/V000/I00039')), "its image 2 is 'set09/V000/I00019', and pair 2 of"),
    (Pairs(size=(256, 320)), 'its image 0 has 512 x 640 pixels (height x width), and pair'),
  ):
    with pytest.raises(ValueError, match=re.escape(message)):
      miss_rates.read(options.annotations, pairs)
  with open(options.annotations, 'w') as file:
    json.dump({'images': [], 'annotations': [{'id': 1}]}, file)
  with pytest.raises(ValueError, match=r"miss_rate\.annotations=.*expected KAIST's .*'image_id'"):
    miss_rates.read(options.annotations, Pairs())
