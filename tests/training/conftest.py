"""What every system is asked in training: the same on every mesh, and bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import parallel
from crossattn_jax.training import experiment as experiment_lib


@pytest.fixture
def image_batch():
  """Grey images with one of ten classes each, by config and dtype."""

  def make(config, dtype=np.float32):
    rng = np.random.default_rng(0)
    shape = (config.batch_size, *config.dataset.image_size, 1)
    return {
      'image': rng.standard_normal(shape).astype(dtype),
      'label': rng.integers(0, 10, config.batch_size).astype(np.int32),
    }

  return make


@pytest.fixture(scope='module')
def one_device_steps():
  """The initial state and the first step of each model on one device, computed once."""
  return {}


@pytest.fixture
def assert_mesh_equals_one_device(one_device_steps):
  """Compares loss, gradients and statistics of a step on a mesh with those on one device.

  In float64, with SGD at rate one: a parameter's change is its gradient. `change` replaces the
  initial parameters.
  """

  def step(config, mesh, batch, initial=None, change=lambda params: params):
    experiment = experiment_lib.setup(config, mesh, steps_per_epoch=10)
    if initial is None:
      initial = experiment.init_state()
      initial = initial.replace(params=change(initial.params))
    state = jax.device_put(jax.tree.map(jnp.copy, initial), experiment.state_shardings)
    with jax.set_mesh(mesh):
      return initial, *experiment.train_step(state, parallel.global_batch(batch, mesh))

  def compare(config, make_batch, sizes, **options):
    config.model.param_dtype = 'float64'
    config.optimizer.name = 'sgd'
    config.optimizer.momentum = 0.0
    config.optimizer.weight_decay = 0.0
    config.schedule.name = 'constant'
    config.schedule.learning_rate = 1.0
    config.schedule.warmup_steps = 0
    with jax.enable_x64(True):
      batch, key = make_batch(config, np.float64), str((config.model, config.task))
      if key not in one_device_steps:
        mesh = parallel.create_mesh(devices=jax.devices()[:1])
        one_device_steps[key] = step(config, mesh, batch, **options)
      initial, expected, one = one_device_steps[key]
      _, state, several = step(config, parallel.create_mesh(*sizes), batch, initial)
      assert float(several['loss']) == pytest.approx(float(one['loss']), rel=1e-12)
      for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path((state.params, state.model_state)),
        jax.tree.leaves((expected.params, expected.model_state)),
        strict=True,
      ):
        x, y = np.asarray(x), np.asarray(y)
        bound = 1e-10 * max(np.abs(y).max(), 1)
        np.testing.assert_allclose(x, y, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))

  return compare


@pytest.fixture
def assert_bfloat16_learns():
  """Trains on one batch in bfloat16: parameters and statistics stay float32, the latter move."""

  def train(config, make_batch, steps=20, share=0.8):
    config.model.dtype = 'bfloat16'
    config.schedule.name = 'constant'
    config.schedule.learning_rate = 1e-2
    config.schedule.warmup_steps = 0
    mesh = parallel.create_mesh(devices=jax.devices()[:1])
    experiment = experiment_lib.setup(config, mesh, steps_per_epoch=10)
    initial = experiment.init_state()
    before = jax.device_get(initial.model_state)
    state, first = experiment.train_step(initial, make_batch(config))
    for _ in range(steps):
      state, last = experiment.train_step(state, make_batch(config))
    assert last['loss'] < share * first['loss']
    leaves = jax.tree.leaves((state.params, state.model_state))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}
    moved = jax.tree.map(lambda new, old: np.any(new != old), state.model_state, before)
    assert all(jax.tree.leaves(moved))

  return train


@pytest.fixture(scope='module')
def one_device():
  """Lets the loop use one of the simulated devices, for which programs compile faster."""
  mesh = parallel.create_mesh(devices=jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parallel, 'create_mesh', lambda **_: mesh)
    yield
