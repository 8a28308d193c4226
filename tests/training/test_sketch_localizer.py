"""The sketch localizer trains from the one loop: on every mesh alike, and in bfloat16."""

import jax
import numpy as np
import pytest

from crossattn_jax import models, parallel, tasks
from crossattn_jax.training import config as config_lib


@pytest.fixture
def config():
  """Two stages, and two levels of which the sketch has refined the last one."""
  config = config_lib.default_config('sketch_localization')
  with config.unlocked():
    config.model = models.model_config(
      'sketch_localizer_tiny',
      width=32,
      depths=(1, 2),
      num_heads=(1, 2),
      window=2,
      mlp_ratio=1,
      drop_path_rate=0.0,
      det_stages=(1,),
      num_queries=8,
      channels=32,
      num_layers=1,
      decoder_heads=2,
      num_points=2,
      decoder_hidden=32,
      drop_rate=0.0,
      fusion_heads=2,
      fusion_hidden=32,
      fusion_drop_rate=0.0,
      first_level=1,
      prior=0.3,
      sketch_depths=(1,),
      sketch_widths=(8,),
    )
  config.dataset.image_size = (48, 64)
  config.dataset.max_boxes = 4
  config.dataset.class_names, config.dataset.unseen_classes = ('cat', 'bus'), ('bus',)
  config.dataset.sketches.size, config.dataset.sketches.count = 32, 2
  config.batch_size = 8
  config.num_steps = 10
  config.sharding.fsdp_min_size = 128
  config.schedule.name = 'constant'
  return config


def _batch(config, dtype=np.float32):
  rng = np.random.default_rng(0)
  count, size = config.batch_size, config.dataset.image_size
  low = rng.uniform(0, 20, (count, 4, 2))
  sizes = rng.integers(40, 48, (count, 2)).astype(np.int32)
  return {
    'image': rng.normal(size=(count, *size, 3)).astype(dtype),
    'image_size': sizes,
    'original_size': 2 * sizes,
    'sketches': rng.normal(size=(count, 2, 32, 32, 3)).astype(dtype),
    'boxes': np.concatenate([low, low + rng.uniform(8, 20, low.shape)], axis=-1).astype(dtype),
    'labels': rng.integers(-1, 1, (count, 4)).astype(np.int32),
  }


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(8, 1, 1, 1), (2, 2, 2, 1)], ids=str)
def test_loss_gradients_and_statistics_on_eight_devices_equal_those_of_one(
  config, assert_mesh_equals_one_device, sizes
):
  assert_mesh_equals_one_device(config, _batch, sizes)


@pytest.mark.slow
def test_what_eight_devices_find_is_what_one_finds(config):
  config.model.param_dtype = 'float64'
  with jax.enable_x64(True):
    task = tasks.create_task(config)
    variables = jax.jit(task.init)(jax.random.key(0))
    batch, found = _batch(config, np.float64), []
    for devices in (1, 8):
      mesh = parallel.create_mesh(devices=jax.devices()[:devices])
      with jax.set_mesh(mesh):
        placed = parallel.global_batch(batch, mesh)
        found.append(jax.device_get(jax.jit(task.detect)(variables, placed)))
  (one, finite), (eight, _) = found
  assert finite.all()
  assert one.labels.shape == (8, 8)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9), one, eight)


@pytest.mark.slow
def test_bfloat16_learns_and_keeps_float32_parameters_and_statistics(
  config, assert_bfloat16_learns
):
  assert_bfloat16_learns(config, _batch, steps=25, share=0.9)
