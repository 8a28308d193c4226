"""The task evaluates every pair once, and writes what it fused."""

import csv
import json

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest

from crossattn_jax import models, tasks
from crossattn_jax.data.image_fusion import batches as data
from crossattn_jax.data.image_fusion import colors
from crossattn_jax.metrics import image_fusion as metrics
from crossattn_jax.tasks.image_fusion import predictions
from crossattn_jax.training import config as config_lib


def small_config(data_dir=None):
  """An ATFuse that compiles in seconds."""
  config = config_lib.default_config('image_fusion')
  with config.unlocked():
    config.model = models.model_config('atfuse', width=4, num_heads=2, image_size=(16, 16))
  config.dataset.name, config.dataset.data_dir = 'shape_scenes/tiny', data_dir
  config.dataset.eval_split = 'validation'
  config.dataset.image_size = (16, 16)
  config.task.compare_with_average = True
  return config


def variables_of(task):
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key == 'var':
      return np.full(leaf.shape, 2000, np.float32)
    return (rng.standard_normal(leaf.shape) * (0.4 if leaf.ndim > 1 else 1)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def total(task, variables, batch_size):
  evaluate = jax.jit(task.evaluate)
  sums, rows = None, []
  for batch in task.eval_data(batch_size, 0, 1):
    result = jax.device_get(evaluate(variables, batch))
    sums = result.sums if sums is None else jax.tree.map(np.add, sums, result.sums)
    rows.append(
      task.reduce_examples({name: x[batch['mask']] for name, x in result.examples.items()})
    )
  examples = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
  return tasks.Evaluation(sums, examples)


def test_every_pair_counts_once_whatever_the_batch_size_and_the_padding(datasets_dir):
  config = small_config(datasets_dir)
  task = tasks.create_task(config)
  variables = variables_of(task)
  alone = task.metrics(total(task, variables, 10))
  config.dataset.evaluation.bucket_step = 72
  padded = task.metrics(total(tasks.create_task(config), variables, 4))
  assert alone['examples'] == padded['examples'] == 10
  assert set(alone) == set(padded)
  averages = {name for name in alone if name.startswith('average/')}
  # Of images this small, one is not defined.
  assert {*task.metric_modes} - {'MS_SSIM'} == {*alone} - averages - {'examples'}
  assert all(map(task.explain, alone))
  for name, value in alone.items():
    assert padded[name] == pytest.approx(value, rel=2e-3), name
  assert alone['loss'] == pytest.approx(
    20 * (alone['gradient_loss'] + alone['intensity_loss']), rel=1e-5
  )
  assert alone['average/MSE'] < alone['MSE']
  assert 0 <= alone['better_than_average'] <= len(metrics.HEADLINE)


def test_fused_images_that_are_not_finite_are_refused(datasets_dir):
  task = tasks.create_task(small_config(datasets_dir))
  sums = {'count': 10, 'not_finite': 2, 'loss': np.nan}
  with pytest.raises(ValueError, match='not finite for 2 of 10 pairs'):
    task.metrics(tasks.Evaluation(sums))


@pytest.fixture
def pair_folders(tmp_path):
  """A grey and a colour pair, of two sizes."""
  rng = np.random.default_rng(0)
  for kind in ('vi', 'ir'):
    (tmp_path / kind).mkdir()
  for name, size in (('grey', (44, 50)), ('colour', (61, 48))):
    infrared = rng.integers(0, 256, size).astype(np.uint8)
    visible = infrared[::-1]
    if name == 'colour':
      visible = rng.integers(60, 200, (*size, 3)).astype(np.uint8)
    Image.fromarray(visible).save(tmp_path / 'vi' / f'{name}.png')
    Image.fromarray(infrared).save(tmp_path / 'ir' / f'{name}.png')
  return tmp_path


@pytest.mark.extended
def test_two_folders_become_fused_images_sheets_and_tables(pair_folders, tmp_path):
  task = tasks.create_task(small_config())
  variables = variables_of(task)
  inputs, _ = task.Predictor.find_inputs(epath.Path(pair_folders))
  assert [source.name for source in inputs] == ['colour', 'grey']
  assert inputs[0].paths == tuple(str(pair_folders / kind / 'colour.png') for kind in ('vi', 'ir'))
  output = epath.Path(tmp_path / 'out')
  records = task.Predictor(task, variables).write_predictions(epath.Path(pair_folders), output)
  assert json.loads((output / 'predictions.json').read_text()) == records
  colour, grey = (Image.open(record['fused']) for record in records)
  assert (colour.mode, colour.size) == ('RGB', (48, 61))
  assert (grey.mode, grey.size) == ('L', (50, 44))
  assert (output / 'grey.png').exists()
  rows = list(csv.DictReader((output / 'metrics.csv').read_text().splitlines()))
  visible = np.asarray(Image.open(pair_folders / 'vi' / 'grey.png'))
  infrared = np.asarray(Image.open(pair_folders / 'ir' / 'grey.png'))
  expected = metrics.fusion_metrics(np.asarray(grey), visible, infrared)
  assert {name: float(rows[1][name]) for name in expected} == pytest.approx(expected)
  # What is fused is the network's result on the images alone, truncated.
  levels, _ = task.model.apply(
    variables, *(x[None, ..., None].astype(np.float32) for x in (visible, infrared))
  )
  # Rounding may carry a level over an integer.
  assert np.abs(np.asarray(grey) - np.floor(levels[0, ..., 0])).max() <= 1
  table = (output / 'metrics.md').read_text().splitlines()
  assert 'EN ↑' in table[0]
  assert 'MSE ↓' in table[0]
  assert [line.split('|')[1].strip() for line in table[2:]] == ['atfuse', 'mean of both images']
  # Chrominance is the visible image's, but where a level would leave 0..255.
  image, fused = (
    data.read_pair(path, path, data.default_config()).visible
    for path in (inputs[0].paths[0], records[0]['fused'])
  )
  inside = np.all((fused > 0) & (fused < 255), axis=-1)
  shifts = [x[inside].astype(int) - colors.luma(x)[inside][:, None] for x in (image, fused)]
  assert inside.any()
  assert np.abs(shifts[0] - shifts[1]).max() <= 4


def test_attention_is_a_multiple_of_the_mean_over_the_image_not_over_its_padding():
  weights = np.zeros((4, 4))
  weights[:3, :3] = [[1, 1, 1], [1, 1, 1], [1, 1, 10]]
  result = {'attention_maps/a': weights, 'fused': np.zeros((8, 8), np.uint8), 'size': (6, 6)}
  shown = predictions._attention(result)['a'].weights
  np.testing.assert_allclose(shown, weights[:3, :3] / 2)


def test_inputs_that_are_no_pairs_are_refused_with_names(pair_folders):
  task = tasks.create_task(small_config())
  with pytest.raises(ValueError, match='expected a folder with one folder of visible images'):
    task.Predictor.find_inputs(epath.Path(pair_folders / 'vi'))
  with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
    task.Predictor.find_inputs(epath.Path(f'{pair_folders}/vi,{pair_folders}/nowhere'))
  files = [pair_folders / kind / 'grey.png' for kind in ('vi', 'ir')]
  given = epath.Path(','.join(map(str, files)))
  (pair,), _ = task.Predictor.find_inputs(given)
  assert pair.paths == tuple(map(str, files))
  (pair_folders / 'ir' / 'grey.png').unlink()
  with pytest.raises(ValueError, match=r"vi/grey\.png' has no partner: expected '.*/ir' to have"):
    task.Predictor.find_inputs(epath.Path(pair_folders))


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('rounding', 'up', "rounding='up' is not one of truncate, round"),
    ('segments', ((0.2, 'maximum'), (0.7, 'average')), 'add up to 1'),
    ('segments', ((1.0, 'mean'),), "target 'mean' is not one of maximum"),
    ('serving_size', (30, 40), 'must be multiples of 4'),
  ],
)
def test_wrong_values_are_refused_by_key(key, value, message):
  config = small_config()
  config.task[key] = value
  with pytest.raises(ValueError, match=message):
    tasks.create_task(config)


@pytest.mark.extended
def test_the_served_model_fuses_smaller_images_as_if_alone():
  config = small_config()
  config.task.serving_size = (64, 64)
  task = tasks.create_task(config)
  variables, serving = variables_of(task), task.Serving(task)
  rng = np.random.default_rng(0)
  visible, infrared = rng.uniform(0, 255, (2, 1, 64, 64, 1)).astype(np.float32)
  assert {name: spec.shape for name, spec in serving.inputs.items()} == {
    'visible': (64, 64, 1),
    'infrared': (64, 64, 1),
    'size': (2,),
  }
  size = np.array([(46, 50)], np.int32)
  inputs = {'visible': visible, 'infrared': infrared, 'size': size}
  fused = serving.run(variables, inputs)['fused']
  alone, _ = task.model.apply(variables, visible[:, :46, :50], infrared[:, :46, :50])
  np.testing.assert_allclose(fused[:, :46, :50], alone, atol=2e-3)
  assert json.dumps(serving.description)
  assert serving.script.exists()
