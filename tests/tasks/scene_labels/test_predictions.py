"""What scenes hold is said of files, and drawn with what is looked at."""

import dataclasses
import json

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data.scene_points import files
from crossattn_jax.tasks.scene_labels import pictures, predictions

# The class of each supervoxel of the scenes.
TRUTH = np.array([0, 0, 1, 2, 1, 2, 2, 0])


class Seeing:
  """A network that finds floors and boxes, and whose images look at one supervoxel each."""

  num_classes, num_views, encoder_depth, points_widths = 3, 2, 0, (8,)
  decoder_depth, first_query = 2, 'views'

  def apply(self, variables, windows, levels, supervoxel, num_tokens, position, images, **_):
    del variables, windows, levels, supervoxel, num_tokens, position
    outputs = {
      'cross_logits': jnp.array([[2.0, -2.0, 5.0]]),
      'cams': jnp.eye(3)[TRUTH][None],
      'view_cams': jnp.zeros((1, 2, 3)),
    }
    assert images.shape == (1, 2, 12, 16, 3)
    attention = jnp.full((1, 2, 5, 11), -30.0).at[:, :, jnp.arange(5), 3 + jnp.arange(5)].set(0.0)
    return outputs, {'attention_0': attention, 'attention_1': attention}


@pytest.fixture
def predictor(make_task, small_config):
  config = small_config()
  config.dataset.evaluation.rotate = False
  task = make_task(config)
  task.model = Seeing()
  return predictions.Predictor(task, {})


def test_files_are_described_and_drawn(predictor, scenes, tmp_path):
  scene = scenes.scene(6)
  scene = scene._replace(labels=np.full_like(scene.labels, 39))  # Of other classes than these.
  folder = tmp_path / 'given'
  (folder / 'kitchen' / 'images').mkdir(parents=True)
  files.write(folder / 'kitchen.npz', scene)
  for number in range(3):
    Image.new('RGB', (20, 15), (90 * number, 30, 30)).save(folder / f'kitchen/images/{number}.png')
  (folder / 'broken.ply').write_text('not a ply file')
  output = epath.Path(tmp_path / 'out')
  (record,) = predictor.write_predictions(epath.Path(folder), output, 'each')
  assert record['classes'] == [
    {'name': 'box', 'probability': 0.9933},
    {'name': 'floor', 'probability': 0.8808},
  ]
  assert record['points'] == len(scene.points)
  # Walls are none of the classes that are found, so they have no label.
  assert record['labels'] == {'floor': 128, 'box': 16}
  assert json.loads((output / 'predictions.json').read_text()) == [record]
  width, height = Image.open(record['picture']).size
  assert min(width, height) > 900  # All four rows.


def test_samples_show_the_truth_beside_what_is_found(predictor, tmp_path):
  predictor.num_samples = 1
  predictor.write_samples(epath.Path(tmp_path / 'samples.png'))
  assert Image.open(tmp_path / 'samples.png').height > 900


def test_looks_are_shares_of_what_all_alike_would_be():
  logits = np.full((2, 1, 3, 5), 7.0, np.float32)  # A class and two views; a class and four.
  logits[0, 0, 1, 1:] = np.log([1, 2, 3, 2])
  features = {'attention_0': logits, 'attention_1': np.zeros((2, 1, 5, 3))}

  class Model:
    num_classes, decoder_depth, first_query = 1, 2, 'views'

  looks = jax.jit(lambda *given: predictions.looks_at_supervoxels(Model, *given))(
    features, np.array([4, 2])
  )
  np.testing.assert_allclose(looks[0, 1], [0.5, 1, 1.5, 1], rtol=1e-6)
  np.testing.assert_allclose(looks[1, 2], [1, 1, 0, 0], rtol=1e-6)


def test_a_sheet_shows_the_truth_where_it_is_known(scenes, tmp_path):
  scene = scenes.scene(6)
  known = pictures.Sample(scene.points, scene.colors, scene.labels, scene.labels, name='known')
  unknown = dataclasses.replace(known, true=None)
  heights = []
  for samples in ([unknown], [unknown, known]):
    pictures.sheet(epath.Path(tmp_path / 'sheet.png'), samples, scenes.class_names)
    heights.append(Image.open(tmp_path / 'sheet.png').height)
  assert heights[1] > heights[0]
