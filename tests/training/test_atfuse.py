"""ATFuse trains from the one loop: on every mesh alike, and in bfloat16."""

from etils import epath
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import loop


@pytest.fixture
def config():
  config = config_lib.default_config('image_fusion')
  with config.unlocked():
    config.model = models.model_config('atfuse', width=8, num_heads=2, image_size=(8, 8))
  config.model.clamp_in_training = False
  config.dataset.image_size = (8, 8)
  config.batch_size = 8
  config.num_steps = 10
  config.sharding.fsdp_min_size = 128
  config.schedule.name = 'constant'
  return config


def _batch(config, dtype=np.float32):
  rng = np.random.default_rng(0)
  shape = (config.batch_size, *config.dataset.image_size, 1)
  return {name: rng.uniform(0, 255, shape).astype(dtype) for name in ('visible', 'infrared')}


@pytest.mark.slow
def test_loss_gradients_and_statistics_on_eight_devices_equal_those_of_one(
  config, assert_mesh_equals_one_device
):
  assert_mesh_equals_one_device(config, _batch, (2, 2, 2, 1))


@pytest.mark.slow
def test_bfloat16_learns_and_keeps_float32_parameters_and_statistics(
  config, assert_bfloat16_learns
):
  assert_bfloat16_learns(config, _batch, steps=60, share=0.9)


@pytest.mark.slow
def test_a_run_ends_with_metrics_and_a_sheet(config, datasets_dir, tmp_path):
  config.dataset.name, config.dataset.data_dir = 'shape_scenes/tiny', datasets_dir
  config.dataset.eval_split = 'validation'
  config.num_steps = 2
  config.checkpoint.best_metric, config.checkpoint.best_mode = 'loss', 'min'
  metrics = loop.train(config, epath.Path(tmp_path))
  assert metrics['examples'] == 10
  assert np.isfinite(metrics['loss'])
  assert {'predictions.png', 'worst.png', 'curves.png'} <= {
    path.name for path in tmp_path.iterdir()
  }
