"""MMCA trains from the one loop: negatives of the global batch on every mesh, and in bfloat16."""

from etils import epath
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import loop, metric_writers


@pytest.fixture
def config():
  config = config_lib.default_config('retrieval')
  with config.unlocked():
    config.model = models.model_config(
      'mmca_small',
      region_dim=6,
      word_dim=8,
      width=8,
      num_heads=2,
      mlp_dim=16,
      conv_channels=8,
      cross_conv_channels=8,
      text_layers=1,
      text_heads=2,
      text_mlp_dim=16,
      max_positions=8,
    )
  config.dataset.num_regions, config.dataset.region_dim, config.dataset.max_words = 4, 6, 8
  # Two loops over captions, of which the last is filled up.
  config.task.chunk = 5
  config.batch_size = 8
  config.num_steps = 10
  config.sharding.fsdp_min_size = 128
  config.schedule.name = 'constant'
  return config


def _batch(config, dtype=np.float32):
  rng = np.random.default_rng(0)
  count, dataset = config.batch_size, config.dataset
  return {
    'regions': rng.random((count, dataset.num_regions, dataset.region_dim)).astype(dtype),
    'region_mask': np.arange(dataset.num_regions) < rng.integers(1, 5, (count, 1)),
    'words': rng.integers(4, 64, (count, dataset.max_words)).astype(np.int32),
    'word_mask': np.arange(dataset.max_words) < rng.integers(3, 9, (count, 1)),
    'image': np.arange(count, dtype=np.int32),
    'epoch': np.zeros(count, np.int32),
  }


@pytest.mark.slow
@pytest.mark.parametrize('hardest', [True, False])
def test_loss_and_gradients_on_eight_devices_equal_those_of_one(
  config, assert_mesh_equals_one_device, hardest
):
  config.task.hardest = hardest
  assert_mesh_equals_one_device(config, _batch, (2, 2, 2, 1))


@pytest.mark.slow
def test_bfloat16_learns_and_keeps_float32_parameters(config, assert_bfloat16_learns):
  config.model.drop_rate = 0.0
  config.task.hardest = False
  assert_bfloat16_learns(config, _batch, steps=60, share=0.5)


@pytest.mark.slow
def test_a_run_on_eight_devices_ends_with_recalls_and_a_sheet(config, datasets_dir, tmp_path):
  config.dataset.name, config.dataset.data_dir = 'shape_scenes/tiny', datasets_dir
  config.dataset.eval_split = 'validation'
  config.dataset.num_regions = 8
  config.num_steps = 2
  config.checkpoint.best_metric = 'rsum'
  metrics = loop.train(config, epath.Path(tmp_path))
  assert metrics['examples'] == 10
  assert metrics['rsum'] == pytest.approx(
    sum(metrics[f'{way}_r{k}'] for way in ('i2t', 't2i') for k in (1, 5, 10))
  )
  *_, last = metric_writers.read_metrics(tmp_path)
  assert last['eval/rsum'] == metrics['rsum']
  assert {'predictions.png', 'worst.png', 'curves.png'} <= {
    path.name for path in tmp_path.iterdir()
  }
  assert loop.evaluate(config, epath.Path(tmp_path)) == metrics
