"""MMViT trains from the one loop: on every mesh alike, and in bfloat16."""

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mmvit_tones
from crossattn_jax import models, parallel
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import loop


@pytest.fixture
def config(tiny_config):
  """One stage for 16 x 16 images."""
  with tiny_config.unlocked():
    tiny_config.model = models.model_config(
      'mmvit_tiny',
      image_size=(16, 16),
      embed_dim=8,
      num_heads=2,
      depths=(1,),
      cross_stages=(0,),
      num_classes=10,
      num_channels=1,
    )
  tiny_config.dataset.image_size = (16, 16)
  tiny_config.batch_size = 16
  tiny_config.sharding.fsdp_min_size = 64
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
  results = {}

  def compute(config):
    if config.model.depths not in results:
      mesh = parallel.create_mesh(devices=jax.devices()[:1])
      experiment = experiment_lib.setup(config, mesh, steps_per_epoch=10)
      initial = experiment.init_state()
      copied = jax.tree.map(jnp.copy, initial)
      with jax.set_mesh(mesh):
        step = experiment.train_step(copied, _batch(config, np.float64))
        results[config.model.depths] = (initial, *step)
    return results[config.model.depths]

  return compute


@pytest.mark.parametrize(
  ('sizes', 'depths'),
  [
    pytest.param((2, 2, 2, 1), (1,), marks=pytest.mark.slow),
    # A scaled block, and a stage with a cross block only.
    pytest.param((2, 2, 2, 1), (1, 0), marks=pytest.mark.slow),
    pytest.param((1, 8, 1, 1), (1, 0), marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_loss_and_gradients_on_eight_devices_equal_those_of_one(
  exact_config, one_device_step, sizes, depths
):
  exact_config.model.depths = depths
  exact_config.model.cross_stages = tuple(range(len(depths)))
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
      jax.tree_util.tree_leaves_with_path(state.params),
      jax.tree.leaves(expected.params),
      strict=True,
    ):
      x, y = np.asarray(x), np.asarray(y)
      np.testing.assert_allclose(
        x, y, rtol=0, atol=1e-10 * max(np.abs(y).max(), 1), err_msg=jax.tree_util.keystr(path)
      )


@pytest.mark.slow
def test_bfloat16_learns_and_keeps_float32_parameters(config):
  config.model.dtype = 'bfloat16'
  config.task.label_smoothing = 0.0
  config.schedule.name = 'constant'
  config.schedule.learning_rate = 1e-2
  config.schedule.warmup_steps = 0
  mesh = parallel.create_mesh(devices=jax.devices()[:1])
  experiment = experiment_lib.setup(config, mesh, steps_per_epoch=10)
  state, first = experiment.train_step(experiment.init_state(), _batch(config))
  for _ in range(20):
    state, last = experiment.train_step(state, _batch(config))
  assert last['loss'] < 0.8 * first['loss']
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}


@pytest.mark.slow
def test_sounds_are_learnt_from_the_one_loop(tmp_path):
  """A few steps on waveforms, evaluated, with the metric that keeps the best checkpoint."""
  config = mmvit_tones.get_config()
  config.model.update(image_size=(16, 32), embed_dim=8, depths=(1,), cross_stages=(0,))
  config.dataset.num_mel_bins, config.dataset.num_frames = 16, 32
  config.num_epochs, config.num_steps = None, 4
  config.schedule.warmup_epochs = 0.0
  config.evaluation.every_epochs = None
  loop.train(config, epath.Path(tmp_path))
  metrics = loop.evaluate(config, epath.Path(tmp_path))
  assert metrics['examples'] == 512
  assert 0.1 < metrics['mean_average_precision'] <= 1
