"""What is written of files of points: labels, coloured clouds, pages, pictures, records."""

import json

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data.scene_points import point_files
from crossattn_jax.tasks import point_pictures

NAMES = ('floor', 'wall', 'box', 'lamp')


def by_color(variables, batch):
  """Scores of voxels whose colours say the class, as those of the rooms do."""
  del variables
  levels = 127.5 * (batch['windows'][..., 3 * 62] + 1)
  return jax.nn.one_hot(jnp.clip(jnp.round((levels - 70) / 60), 0, 2).astype(int), 4)


@pytest.fixture
def predictor(make_task, small_config):
  small_config.dataset.class_values = (2, 1, 5, 39)
  small_config.dataset.evaluation.votes = 2
  task = make_task(small_config)
  task.logits = by_color
  return task.Predictor(task, {})


def test_files_of_a_folder_are_labelled(predictor, rooms, tmp_path):
  given, output = tmp_path / 'given', tmp_path / 'output'
  (given / 'more').mkdir(parents=True)
  faces = np.array([[0, 1, 2], [2, 3, 4]])
  # Cells of the size of a voxel have one class each.
  scene = rooms[0]._replace(points=100 * rooms[0].points, labels=None, faces=faces)
  point_files.write_ply(given / 'mesh.ply', scene)
  np.savez(given / 'more' / 'room.npz', points=rooms[1].points, colors=rooms[1].colors)
  (given / 'notes.txt').write_text('no points')
  (given / 'broken.ply').write_text('no points')
  seen = []
  records = predictor.write_predictions(
    epath.Path(given), epath.Path(output), 'each', on_record=seen.append
  )
  assert json.loads((output / 'predictions.json').read_text()) == records == seen
  mesh, room = records
  assert mesh['input'] == str(given / 'mesh.ply')
  assert mesh['points'] == len(scene.points)
  true = (scene.colors[:, 0] - 60) // 60
  share = {entry['name']: entry['share'] for entry in mesh['classes']}
  assert share == {name: pytest.approx(np.mean(true == i)) for i, name in enumerate(NAMES[:3])}
  labels = np.array([2, 1, 5, 39])[true]
  assert np.loadtxt(output / 'labels' / 'mesh.txt', int).tolist() == labels.tolist()
  colored = point_files.read(output / 'clouds' / 'mesh.ply')
  np.testing.assert_array_equal(colored.points, scene.points)
  np.testing.assert_array_equal(colored.labels, labels)
  np.testing.assert_array_equal(colored.colors, point_pictures.palette(4)[true])
  np.testing.assert_array_equal(colored.faces, faces)
  assert room['points'] == len(rooms[1].points)
  assert room['labels'] == str(output / 'labels' / 'more' / 'room.txt')
  assert len(np.loadtxt(room['labels'], int)) == len(rooms[1].points)
  assert Image.open(room['picture']).size[0] > 900


def test_scenes_of_scannet_are_called_as_the_server_wants(predictor, rooms, tmp_path):
  scans = tmp_path / 'scans'
  for scene in ('scene0707_00', 'scene0708_00'):
    (scans / scene).mkdir(parents=True)
    for name in ('vh_clean_2', 'vh_clean', 'vh_clean_2.labels'):
      point_files.write_ply(scans / scene / f'{scene}_{name}.ply', rooms[0])
  inputs, _ = predictor.find_inputs(epath.Path(scans))
  assert [source.name for source in inputs] == ['scene0707_00', 'scene0708_00']
  assert inputs[0].paths[0].endswith('scene0707_00_vh_clean_2.ply')
  one, _ = predictor.find_inputs(epath.Path(inputs[1].paths[0]))
  assert one == inputs[1:]


def test_without_plotly_there_are_no_pages_and_a_line_says_so(predictor, monkeypatch):
  assert predictor.check(predictor.task) == []
  assert 'pages' in predictor.kinds
  monkeypatch.setattr(point_pictures, 'can_be_turned', lambda: False)
  assert predictor.kinds == ['labels', 'clouds']
  (line,) = predictor.check(predictor.task)
  assert "pip install 'crossattn_jax[points]'" in line


def test_evaluation_scenes_are_drawn_with_their_true_classes(predictor, tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(predictor, 'draw_sheet', lambda path, samples: drawn.extend(samples))
  predictor.write_samples(epath.Path(tmp_path / 'a.png'))
  # Two looks at each of three scenes.
  assert len(drawn) == 6
  assert [sample.name for sample in drawn[::2]] == ['scene_0000', 'scene_0001', 'scene_0002']
  for sample in drawn:
    counted = sample.true >= 0
    assert np.mean((sample.predicted == sample.true)[counted]) > 0.8
