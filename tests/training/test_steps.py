"""A training step computes the same on every mesh, and nothing that is not finite survives it."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import parallel
from crossattn_jax.models import registry
from crossattn_jax.training import experiment as experiment_lib


class _BatchNormClassifier(nn.Module):
  """The smallest model with batch statistics."""

  num_classes: int = 10

  @nn.compact
  def __call__(self, image, train=False):
    x = nn.Conv(8, (3, 3), name='conv')(image)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name='norm')(x)
    return nn.Dense(self.num_classes, name='head')(nn.relu(x).mean((1, 2))), {}


registry.register('test_batch_norm', _BatchNormClassifier)


def _batch(config, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.standard_normal((config.batch_size, 8, 8, 1)).astype(np.float32),
    'label': rng.integers(0, 10, config.batch_size).astype(np.int32),
  }


def _step(config, mesh, batches, initial=None):
  """States and metrics after some steps, from the initial state of another mesh if given."""
  experiment = experiment_lib.setup(config, mesh, steps_per_epoch=10)
  if initial is None:
    state = experiment.init_state()
  else:
    state = jax.device_put(jax.tree.map(jnp.copy, initial), experiment.state_shardings)
  history = []
  with jax.set_mesh(mesh):
    for batch in batches:
      # In float64 where the parameters are.
      image = batch['image'].astype(jax.tree.leaves(state.params)[0].dtype)
      batch = {**batch, 'image': image}
      state, metrics = experiment.train_step(state, parallel.global_batch(batch, mesh))
      history.append(jax.device_get(metrics))
  return state, history


def _one_device():
  return parallel.create_mesh(devices=jax.devices()[:1])


def _assert_trees_close(tree, expected, rtol):
  """Relative to the largest value of each array, so that zeros do not ask for exactness."""
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(expected), strict=True
  ):
    x, y = np.asarray(x), np.asarray(y)
    np.testing.assert_allclose(
      x, y, rtol=0, atol=rtol * max(np.abs(y).max(), 1e-30), err_msg=jax.tree_util.keystr(path)
    )


@pytest.fixture
def wide_config(tiny_config):
  """Wide enough that every rule of the sharding applies, in float64 and without dropout."""
  config = tiny_config
  config.model.widths = (64, 128)
  config.model.param_dtype = 'float64'
  config.model.drop_path_rate = 0.0
  config.sharding.fsdp_min_size = 256
  # With SGD the change of a parameter is its gradient: Adam's sign-like first steps hide scale.
  config.optimizer.name = 'sgd'
  config.optimizer.weight_decay = 0.0
  config.schedule.name = 'constant'
  config.schedule.learning_rate = 1.0
  config.schedule.warmup_steps = 0
  return config


@pytest.fixture(scope='module')
def one_device_step():
  """Computes the wide config's initial state and its first step on one device, once."""
  results = []

  def compute(config):
    if not results:
      initial = experiment_lib.setup(config, _one_device(), steps_per_epoch=10).init_state()
      results.append((initial, *_step(config, _one_device(), [_batch(config)], initial)))
    return results[0]

  return compute


@pytest.mark.parametrize(
  'sizes',
  [
    pytest.param((2, 2, 2, 1), marks=pytest.mark.extended),
    *(
      pytest.param(sizes, marks=pytest.mark.slow)
      for sizes in ((8, 1, 1, 1), (1, 8, 1, 1), (2, 1, 2, 2))
    ),
  ],
  ids=str,
)
def test_loss_and_gradients_on_eight_devices_equal_those_of_one(
  wide_config, one_device_step, sizes
):
  with jax.enable_x64(True):
    initial, expected, one = one_device_step(wide_config)
    mesh = parallel.create_mesh(*sizes)
    state, eight = _step(wide_config, mesh, [_batch(wide_config)], initial)
    assert eight[0]['loss'] == pytest.approx(one[0]['loss'], rel=1e-12)
    assert eight[0]['gradient_norm'] == pytest.approx(one[0]['gradient_norm'], rel=1e-10)
    _assert_trees_close(state.params, expected.params, 1e-10)


@pytest.mark.extended
@pytest.mark.parametrize('sizes', [(1, 8, 1, 1), (2, 2, 2, 1)], ids=str)
def test_parameters_and_optimizer_state_are_really_sharded(wide_config, sizes):
  wide_config.model.param_dtype = 'float32'
  wide_config.optimizer.name = 'adamw'
  wide_config.optimizer.nominal_batch_size = 256  # A sum of gradients.
  mesh = parallel.create_mesh(*sizes)
  experiment = experiment_lib.setup(wide_config, mesh, steps_per_epoch=10)
  state = experiment.init_state()

  def bytes_on_first_device(tree):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

  def total_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

  shards = mesh.shape['fsdp'] * mesh.shape['tensor']
  for tree in (state.params, state.opt_state):
    # What cannot be split, such as norms and embeddings of odd length, is under a tenth.
    assert bytes_on_first_device(tree) < total_bytes(tree) * (1 / shards + 0.1)


def test_batch_statistics_are_those_of_the_global_batch(tiny_config):
  with tiny_config.unlocked():
    tiny_config.model = registry.model_config('test_batch_norm')
  batch = _batch(tiny_config)
  # Every device's rows have another mean and another spread.
  rows = np.arange(tiny_config.batch_size, dtype=np.float32)[:, None, None, None]
  batch['image'] = batch['image'] * rows / 10 + rows
  expected, _ = _step(tiny_config, _one_device(), [batch])
  state, _ = _step(tiny_config, parallel.create_mesh(8), [batch])
  _assert_trees_close(state.model_state, expected.model_state, 1e-5)


def test_batches_of_another_shape_have_a_program_of_their_own(tiny_config):
  with tiny_config.unlocked():
    tiny_config.model = registry.model_config('test_batch_norm')
  experiment = experiment_lib.setup(tiny_config, _one_device(), steps_per_epoch=10)
  usual = _batch(tiny_config)
  other = {**usual, 'image': np.pad(usual['image'], [(0, 0), (0, 4), (0, 0), (0, 0)])}
  state = experiment.init_state()
  with jax.set_mesh(experiment.mesh):
    for batch in (usual, other):
      state, metrics = experiment.step(state, batch)
      assert np.isfinite(metrics['loss'])
  assert int(state.step) == 2


@pytest.mark.extended
def test_accumulation_gives_the_gradient_of_the_whole_batch(wide_config, one_device_step):
  with jax.enable_x64(True):
    initial, expected, whole = one_device_step(wide_config)
    wide_config.accumulation_steps = 4
    state, split = _step(wide_config, parallel.create_mesh(4, 1, 2), [_batch(wide_config)], initial)
    assert split[0]['loss'] == pytest.approx(whole[0]['loss'], rel=1e-12)
    _assert_trees_close(state.params, expected.params, 1e-10)


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient(wide_config, one_device_step):
  with jax.enable_x64(True):
    initial, expected, _ = one_device_step(wide_config)
    wide_config.model.remat = True
    state, _ = _step(wide_config, _one_device(), [_batch(wide_config)], initial)
    _assert_trees_close(state.params, expected.params, 1e-12)


def test_average_follows_parameters_and_batch_statistics(tiny_config):
  with tiny_config.unlocked():
    tiny_config.model = registry.model_config('test_batch_norm')
  tiny_config.ema.decay = 0.5
  tiny_config.ema.warmup = False
  experiment = experiment_lib.setup(tiny_config, _one_device(), steps_per_epoch=10)
  state = experiment.init_state()
  expected = jax.device_get(state.variables)
  for seed in range(3):
    state, _ = experiment.train_step(state, _batch(tiny_config, seed))
    expected = jax.tree.map(lambda a, b: (a + np.asarray(b)) / 2, expected, state.variables)
  _assert_trees_close(state.ema, expected, 1e-6)
  assert state.eval_variables is state.ema


@pytest.mark.extended
def test_a_step_that_is_not_finite_changes_only_the_counters(tiny_config):
  # Updates take two steps: the sum of gradients waits, too.
  tiny_config.optimizer.nominal_batch_size = 2 * tiny_config.batch_size
  tiny_config.ema.decay = 0.9
  experiment = experiment_lib.setup(tiny_config, _one_device(), steps_per_epoch=10)
  good, bad = _batch(tiny_config), _batch(tiny_config)
  bad['image'][3, 2, 2] = np.nan
  state, metrics = experiment.train_step(experiment.init_state(), good)
  state, metrics = experiment.train_step(state, good)
  before = jax.device_get((state.params, state.opt_state, state.ema))
  for count in (1, 2):
    state, metrics = experiment.train_step(state, bad)
    assert np.isnan(metrics['loss'])
    assert metrics['bad_steps'] == count
  after = jax.device_get((state.params, state.opt_state, state.ema))
  jax.tree.map(np.testing.assert_array_equal, before, after)
  state, metrics = experiment.train_step(state, good)
  assert state.step == 5
  assert metrics['bad_steps'] == 0
  assert np.isfinite(metrics['loss'])
  others = experiment.init_state()
  for _ in range(3):
    others, _ = experiment.train_step(others, good)
  _assert_trees_close(state.params, others.params, 1e-6)
  _assert_trees_close(state.ema, others.ema, 1e-6)


@pytest.mark.extended
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(tiny_config):
  tiny_config.model.dtype = 'bfloat16'
  experiment = experiment_lib.setup(tiny_config, _one_device(), steps_per_epoch=10)
  state, first = experiment.train_step(experiment.init_state(), _batch(tiny_config))
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}
  assert first['loss'].dtype == jnp.float32
  _, features = jax.eval_shape(
    experiment.task.model.apply, state.variables, _batch(tiny_config)['image']
  )
  assert features['tokens/0'].dtype == jnp.bfloat16
  for _ in range(20):
    state, last = experiment.train_step(state, _batch(tiny_config))
  assert last['loss'] < first['loss']
