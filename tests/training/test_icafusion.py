"""ICAFusion trains from the one loop: on every mesh alike, and in bfloat16."""

import jax
import numpy as np
import pytest

from crossattn_jax import models, parallel, tasks
from crossattn_jax.training import config as config_lib


@pytest.fixture
def config():
  config = config_lib.default_config('paired_detection')
  with config.unlocked():
    config.model = models.model_config(
      'icafusion_n',
      num_classes=3,
      widths=(8, 8, 8, 16, 16),
      depths=(1, 1, 1, 1),
      neck_widths=(8, 8, 8, 8, 8, 8, 8, 16),
      neck_depth=1,
      grids=((4, 4), (3, 3), (2, 2)),
      num_heads=2,
      mlp_ratio=1,
      loops=2,
    )
  config.dataset.image_size = (64, 96)
  config.dataset.max_boxes = 4
  config.batch_size = 8
  config.num_steps = 10
  config.sharding.fsdp_min_size = 128
  config.schedule.name = 'constant'
  return config


def _batch(config, dtype=np.float32):
  rng = np.random.default_rng(0)
  count, size = config.batch_size, config.dataset.image_size
  images = rng.uniform(0, 1, (2, count, *size, 3)).astype(dtype)
  low = rng.uniform(0, 40, (count, 4, 2))
  boxes = np.concatenate([low, low + rng.uniform(8, 24, low.shape)], axis=-1).astype(dtype)
  labels = rng.integers(-1, 3, (count, 4)).astype(np.int32)
  return {'rgb': images[0], 'thermal': images[1], 'boxes': boxes, 'labels': labels}


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(8, 1, 1, 1), (2, 2, 2, 1)], ids=str)
def test_loss_gradients_and_statistics_on_eight_devices_equal_those_of_one(
  config, assert_mesh_equals_one_device, sizes
):
  config.model.attention_drop_rate = config.model.drop_rate = 0.0
  assert_mesh_equals_one_device(config, _batch, sizes)


@pytest.mark.slow
def test_the_smallest_published_model_on_eight_devices_equals_that_on_one(
  config, assert_mesh_equals_one_device
):
  options = {'num_classes': 3, 'attention_drop_rate': 0.0, 'drop_rate': 0.0}
  with config.unlocked():
    config.model = models.model_config('icafusion_n', **options)
  assert_mesh_equals_one_device(config, _batch, (8, 1, 1, 1))


@pytest.mark.slow
def test_what_eight_devices_find_is_what_one_finds(config):
  config.model.param_dtype = 'float64'
  config.task.evaluation.max_boxes = 20
  with jax.enable_x64(True):
    task = tasks.create_task(config)
    variables = jax.jit(task.init)(jax.random.key(0))
    batch = {
      name: x for name, x in _batch(config, np.float64).items() if name in ('rgb', 'thermal')
    }
    rng = np.random.default_rng(1)
    batch |= {
      'offset': rng.integers(0, 8, (8, 2)),
      'scale': rng.uniform(0.5, 2, 8),
      'original_size': rng.integers(30, 90, (8, 2)),
    }
    found = []
    for devices in (1, 8):
      mesh = parallel.create_mesh(devices=jax.devices()[:devices])
      with jax.set_mesh(mesh):
        placed = parallel.global_batch(batch, mesh)
        found.append(jax.device_get(jax.jit(task.detect)(variables, placed)))
  (one, finite), (eight, _) = found
  assert finite.all()
  assert (one.labels >= 0).any()
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9), one, eight)
  corners = np.tile(batch['original_size'][:, None, ::-1], 2)
  assert ((one.boxes >= 0) & (one.boxes <= corners)).all()


@pytest.mark.slow
def test_bfloat16_learns_and_keeps_float32_parameters_and_statistics(
  config, assert_bfloat16_learns
):
  config.task.loss.reduction = 'mean'
  assert_bfloat16_learns(config, _batch, steps=25, share=0.9)
