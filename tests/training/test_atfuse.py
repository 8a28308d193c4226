"""ATFuse trains from the one loop: on every mesh alike, and in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models, parallel
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib


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


def _step(config, mesh, initial=None):
  experiment = experiment_lib.setup(config, mesh, steps_per_epoch=10)
  state = experiment.init_state() if initial is None else initial
  state = jax.device_put(jax.tree.map(jnp.copy, state), experiment.state_shardings)
  before = jax.device_get(state)
  with jax.set_mesh(mesh):
    batch = parallel.global_batch(_batch(config, np.float64), mesh)
    return before, *jax.device_get(experiment.train_step(state, batch))


@pytest.mark.slow
def test_loss_gradients_and_statistics_on_eight_devices_equal_those_of_one(config):
  """With SGD a parameter's change is its gradient."""
  config.model.param_dtype = 'float64'
  config.optimizer.name = 'sgd'
  config.schedule.learning_rate = 1.0
  with jax.enable_x64(True):
    one_device = parallel.create_mesh(devices=jax.devices()[:1])
    initial, expected, one = _step(config, one_device)
    _, state, eight = _step(config, parallel.create_mesh(2, 2, 2, 1), initial)
  assert float(eight['loss']) == pytest.approx(float(one['loss']), rel=1e-12)
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path((state.params, state.model_state)),
    jax.tree.leaves((expected.params, expected.model_state)),
    strict=True,
  ):
    np.testing.assert_allclose(
      x, y, rtol=0, atol=1e-10 * max(np.abs(y).max(), 1), err_msg=jax.tree_util.keystr(path)
    )


@pytest.mark.slow
def test_bfloat16_learns_and_keeps_float32_parameters_and_statistics(config):
  config.model.dtype = 'bfloat16'
  config.schedule.learning_rate = 1e-2
  mesh = parallel.create_mesh(devices=jax.devices()[:1])
  experiment = experiment_lib.setup(config, mesh, steps_per_epoch=10)
  state, first = experiment.train_step(experiment.init_state(), _batch(config))
  for _ in range(60):
    state, last = experiment.train_step(state, _batch(config))
  assert last['loss'] < 0.9 * first['loss']
  leaves = jax.tree.leaves((state.params, state.model_state))
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}
