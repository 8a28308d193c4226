"""Segmentation trains from the one loop: on every mesh alike, and in bfloat16 with large scores."""

import functools
import json
import pathlib

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models, parallel
from crossattn_jax.data.scenes import dataset
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import loop


@pytest.fixture
def config():
  """A CCNet that compiles in seconds, with all losses that look at the whole batch."""
  config = config_lib.default_config('segmentation')
  with config.unlocked():
    config.model = models.model_config(
      'ccnet_resnet50',
      num_classes=7,
      depths=(1, 1, 1, 1),
      widths=(4, 4, 8, 8),
      stem_widths=(4, 4, 8),
      head_channels=16,
      context_channels=16,
      embedding=4,
      dropout_rate=0.0,
    )
  config.dataset.name = 'shape_scenes/tiny'
  config.dataset.image_size = (33, 33)
  config.task.loss = 'ohem'
  config.task.ohem_min_kept = 2048
  config.task.consistency_weight = 0.5
  config.batch_size = 8
  config.num_steps = 100
  config.optimizer.name = 'sgd'
  config.optimizer.momentum = 0.0
  config.schedule.name = 'constant'
  config.schedule.learning_rate = 1.0
  config.sharding.fsdp_min_size = 256
  return config


def _batch(config, dtype=np.float32):
  rng = np.random.default_rng(0)
  shape = (config.batch_size, *config.dataset.image_size)
  label = np.repeat(np.repeat(rng.integers(0, 8, (shape[0], 4, 4)), 9, 1), 9, 2)[:, :33, :33]
  return {
    'image': rng.standard_normal((*shape, 3)).astype(dtype) + label[..., None].astype(dtype),
    'label': np.where(label == 7, 255, label).astype(np.int32),
  }


def _scaled(params, factors):
  """Multiplies parameters whose path ends so; gates become one."""

  def scale(path, leaf):
    name = '/'.join(str(key.key) for key in path)
    if name.endswith('gate'):
      return jnp.ones_like(leaf)
    return leaf * next((factor for end, factor in factors.items() if name.endswith(end)), 1)

  return jax.tree_util.tree_map_with_path(scale, params)


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(2, 2, 2, 1), (1, 8, 1, 1), (2, 2, 1, 2)], ids=str)
def test_loss_gradients_and_statistics_on_eight_devices_equal_those_of_one(
  config, assert_mesh_equals_one_device, sizes
):
  open_gates = functools.partial(_scaled, factors={})
  assert_mesh_equals_one_device(config, _batch, sizes, change=open_gates)


@pytest.mark.slow
def test_bfloat16_with_scores_and_logits_in_the_thousands_stays_finite_and_learns(config):
  config.model.dtype = 'bfloat16'
  config.optimizer.name = 'adam'
  config.schedule.learning_rate = 3e-2
  config.max_bad_steps = 1
  mesh = parallel.create_mesh(devices=jax.devices()[:1])
  experiment = experiment_lib.setup(config, mesh, steps_per_epoch=10)
  state = experiment.init_state()
  factors = {'query/kernel': 300, 'key/kernel': 300, 'classifier/kernel': 3000}
  state = state.replace(params=_scaled(state.params, factors))
  losses = []
  with jax.set_mesh(mesh):
    batch = _batch(config)
    (logits, features), _ = jax.jit(
      lambda variables, image: experiment.task.model.apply(
        variables, image, train=True, mutable=['batch_stats']
      )
    )(state.variables, batch['image'])
    assert jnp.abs(logits).max() > 1000
    # Nothing but the largest score counts.
    assert features['attention/1'].max(-1).mean() > 0.99
    for _ in range(12):
      state, metrics = experiment.train_step(state, batch)
      assert metrics['bad_steps'] == 0
      losses.append(float(metrics['loss']))
  assert losses[0] > 100
  assert losses[-1] < 0.7 * losses[0]
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}


def test_a_run_ends_with_metrics_and_a_sheet(config, datasets_dir, tmp_path, capsys):
  config.dataset.data_dir, config.dataset.eval_split = datasets_dir, 'validation'
  config.num_steps = 2
  config.checkpoint.best_metric = 'mean_iou'
  metrics = loop.train(config, epath.Path(tmp_path))
  assert metrics['examples'] == 10
  assert 0 <= metrics['mean_iou'] <= 1
  *said, last = capsys.readouterr().err.splitlines()
  assert f'mean IoU        {metrics["mean_iou"]:.3f}' in said
  assert 'mean_iou' in last
  assert 'iou/' not in last
  assert {'predictions.png', 'confusion.png', 'worst.png', 'curves.png'} <= {
    path.name for path in tmp_path.iterdir()
  }


BACKBONES = {
  'swiftformer_xs': {'widths': (8, 16, 16, 24), 'depths': (1, 1, 1, 1)},
  'biformer_tiny': {
    'widths': (16, 16, 32, 32),
    'depths': (1, 1, 1, 1),
    'head_dim': 8,
    'regions_per_side': (2, 2, 2, 1),
    'top_k': (1, 2, 4, 0),
  },
  'crossformer_tiny': {
    # The multilayer perceptron of its position bias has a sixteenth of the channels.
    'widths': (64, 64, 64, 64),
    'depths': (1, 1, 2, 1),
    'head_dim': 32,
  },
  'pyramid_tiny': {
    'widths': (16, 16, 32, 32),
    'depths': (1, 1, 1, 1),
    'head_dim': 8,
  },
}


@pytest.mark.slow
@pytest.mark.parametrize('head', ['semantic_fpn', 'upernet'])
@pytest.mark.parametrize('name', BACKBONES)
def test_every_pyramid_backbone_trains_with_both_heads(config, name, head):
  with config.unlocked():
    config.model = models.model_config(
      f'{name}+{head}', num_classes=7, image_size=(64, 64), head_channels=16, **BACKBONES[name]
    )
  if head == 'semantic_fpn':
    config.model.pyramid_channels = 16
  else:
    config.model.auxiliary_channels = 16
  config.dataset.image_size = (64, 64)
  config.task.loss = 'cross_entropy'
  config.task.consistency_weight = 0.0
  # Its steps are as large for the smallest gradients.
  config.optimizer.name = 'adam'
  config.optimizer.epsilon = 1e-30
  experiment = experiment_lib.setup(config, steps_per_epoch=10)
  state = experiment.init_state()
  before = jax.device_get(state.params)
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.standard_normal((8, 64, 64, 3)).astype(np.float32),
    'label': rng.integers(0, 7, (8, 64, 64)).astype(np.int32),
  }
  state, metrics = experiment.train_step(state, batch)
  assert np.isfinite(metrics['loss'])
  unchanged = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for (path, old), new in zip(
      jax.tree_util.tree_leaves_with_path(before),
      jax.tree.leaves(jax.device_get(state.params)),
      strict=True,
    )
    if np.array_equal(old, new)
  ]
  # Only classification has the norm after the last stage.
  assert set(unchanged) <= {'backbone/norm/bias', 'backbone/norm/scale'}


def test_a_run_that_named_its_head_in_the_task_still_evaluates(tmp_path):
  """Of version 0.1.0, as it was before models were called BACKBONE+HEAD."""
  run = pathlib.Path(__file__).with_name('earlier_runs') / 'semantic_fpn_shapes'
  dataset.prepare('shape_scenes/tiny', str(tmp_path))
  config = config_lib.load(epath.Path(run / 'config.json'))
  assert config.model.name == 'resnet50_deep_stem+semantic_fpn'
  config.dataset.data_dir = str(tmp_path)
  config.batch_size = config.evaluation.batch_size = 8
  metrics = loop.evaluate(config, epath.Path(run))
  *_, last = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
  assert metrics['pixel_accuracy'] == pytest.approx(last['eval/pixel_accuracy'], abs=1e-3)
  assert metrics['mean_iou'] == pytest.approx(last['eval/mean_iou'], abs=1e-3)
