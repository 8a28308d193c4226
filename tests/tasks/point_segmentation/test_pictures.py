"""Pictures have a column for each scene."""

from etils import epath
import numpy as np
from PIL import Image

from crossattn_jax.tasks.point_segmentation import pictures

NAMES = ('floor', 'wall', 'box', 'lamp')


def test_what_is_right_is_said_of_points_with_a_class(rooms):
  room = rooms[0]._replace(labels=np.arange(len(rooms[0].points)) % 4 - 1)
  sample = pictures.Sample(room.points, room.colors, np.full(len(room.points), 1), room.labels)
  assert sample.right == '33.3% right'
  assert list(sample.colorings(4)) == ['the scan', 'predicted classes', 'true classes']
  unknown = pictures.Sample(room.points, room.colors, sample.predicted, None)
  assert unknown.right == ''
  assert list(unknown.colorings(4)) == ['the scan', 'predicted classes']


def test_pictures_are_drawn(rooms, tmp_path):
  samples = [
    pictures.Sample(room.points, room.colors, np.maximum(room.labels, 0), room.labels, f'room {i}')
    for i, room in enumerate(rooms)
  ]
  sheet, overview = epath.Path(tmp_path / 'sheet.png'), epath.Path(tmp_path / 'overview.png')
  pictures.sheet(sheet, samples, NAMES)
  pictures.overview(overview, samples[0], NAMES)
  assert Image.open(sheet).size[0] == round(3 * 2.5 * 120)
  assert Image.open(overview).size[0] == 10 * 120
