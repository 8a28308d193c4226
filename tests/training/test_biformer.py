"""BiFormer trains from the one loop: on every mesh alike, in bfloat16, with its statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models, parallel
from crossattn_jax.training import experiment as experiment_lib


@pytest.fixture
def config(tiny_config):
  """A routed and a global stage for 16 x 16 images."""
  with tiny_config.unlocked():
    tiny_config.model = models.model_config(
      'biformer_tiny',
      image_size=(16, 16),
      widths=(16, 32),
      depths=(1, 1),
      attentions=('routed', 'global'),
      top_k=(2, 0),
      regions_per_side=(2, 2),
      kv_pool_sizes=(1, 1),
      head_dim=4,
      global_heads=4,
      lepe_side=3,
      num_classes=10,
      num_channels=1,
    )
  tiny_config.dataset.image_size = (16, 16)
  tiny_config.batch_size = 16
  tiny_config.sharding.fsdp_min_size = 256
  return tiny_config


def _batch(config, dtype=np.float32):
  rng = np.random.default_rng(0)
  shape = (config.batch_size, *config.dataset.image_size, 1)
  return {
    'image': rng.standard_normal(shape).astype(dtype),
    'label': rng.integers(0, 10, config.batch_size).astype(np.int32),
  }


@pytest.fixture
def exact_config(config):
  """In float64, with SGD: a parameter's change is its gradient."""
  config.model.param_dtype = 'float64'
  config.optimizer.name = 'sgd'
  config.optimizer.weight_decay = 0.0
  config.schedule.name = 'constant'
  config.schedule.learning_rate = 1.0
  config.schedule.warmup_steps = 0
  return config


@pytest.fixture(scope='module')
def one_device_step():
  """The initial state and the first step on one device, computed once."""
  results = []

  def compute(config):
    if not results:
      mesh = parallel.create_mesh(devices=jax.devices()[:1])
      experiment = experiment_lib.setup(config, mesh, steps_per_epoch=10)
      initial = experiment.init_state()
      copied = jax.tree.map(jnp.copy, initial)
      with jax.set_mesh(mesh):
        results.append((initial, *experiment.train_step(copied, _batch(config, np.float64))))
    return results[0]

  return compute


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(2, 2, 2, 1), (1, 8, 1, 1)], ids=str)
def test_loss_gradients_and_statistics_on_eight_devices_equal_those_of_one(
  exact_config, one_device_step, sizes
):
  with jax.enable_x64(True):
    initial, expected, one = one_device_step(exact_config)
    mesh = parallel.create_mesh(*sizes)
    experiment = experiment_lib.setup(exact_config, mesh, steps_per_epoch=10)
    state = jax.device_put(jax.tree.map(jnp.copy, initial), experiment.state_shardings)
    with jax.set_mesh(mesh):
      batch = parallel.global_batch(_batch(exact_config, np.float64), mesh)
      state, eight = experiment.train_step(state, batch)
    assert float(eight['loss']) == pytest.approx(float(one['loss']), rel=1e-12)
    for (path, x), y in zip(
      jax.tree_util.tree_leaves_with_path((state.params, state.model_state)),
      jax.tree.leaves((expected.params, expected.model_state)),
      strict=True,
    ):
      x, y = np.asarray(x), np.asarray(y)
      np.testing.assert_allclose(
        x, y, rtol=0, atol=1e-10 * max(np.abs(y).max(), 1), err_msg=jax.tree_util.keystr(path)
      )


@pytest.mark.slow
def test_bfloat16_learns_and_keeps_float32_parameters_and_statistics(config):
  config.model.dtype = 'bfloat16'
  config.task.label_smoothing = 0.0
  config.schedule.name = 'constant'
  config.schedule.learning_rate = 1e-2
  config.schedule.warmup_steps = 0
  mesh = parallel.create_mesh(devices=jax.devices()[:1])
  experiment = experiment_lib.setup(config, mesh, steps_per_epoch=10)
  initial = experiment.init_state()
  before = jax.device_get(initial.model_state)
  state, first = experiment.train_step(initial, _batch(config))
  for _ in range(20):
    state, last = experiment.train_step(state, _batch(config))
  assert last['loss'] < 0.8 * first['loss']
  leaves = jax.tree.leaves((state.params, state.model_state))
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}
  moved = jax.tree.map(lambda new, old: np.any(new != old), state.model_state, before)
  assert all(jax.tree.leaves(moved))
