"""Training starts from weights of any kind: what is taken, fresh, frozen, and what is refused."""

import shutil

from etils import epath
import jax
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.models import variables_io
from crossattn_jax.training import checkpoints, weights
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib

pytestmark = pytest.mark.extended


def setup(config):
  return experiment_lib.setup(config, steps_per_epoch=10)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Where the run is kept, and its variables once it is there."""
  return {'workdir': tmp_path_factory.mktemp('saved') / 'run'}


@pytest.fixture
def run(tiny_config, saved, tmp_path):
  """A run with an average: config and checkpoints 4 and 8, without training."""
  tiny_config.ema.decay = 0.9
  tiny_config.dataset.class_names = tuple('abcdefghij')
  if 'variables' not in saved:
    saved['workdir'].mkdir()
    config_lib.save(tiny_config, epath.Path(saved['workdir'] / 'config.json'))
    saved['variables'] = _save_checkpoints(tiny_config, saved['workdir'])
  tiny_config.ema.decay = 0.0
  shutil.copytree(saved['workdir'], tmp_path / 'run')
  return tmp_path / 'run', saved['variables']


def _save_checkpoints(config, workdir):
  state = setup(config).init_state()
  state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.variables))
  checkpointer = checkpoints.Checkpointer(
    workdir / 'checkpoints', keep_last=2, keep_best=2, best_metric='accuracy'
  )
  for step, accuracy in ((4, 0.9), (8, 0.5)):
    ema = jax.tree.map(lambda x, step=step: x + step, state.ema)
    checkpointer.save(step, state.replace(ema=ema))
    checkpointer.add_metrics(step, {'accuracy': accuracy})
  checkpointer.close()
  return jax.device_get(state.variables)


@pytest.mark.parametrize(
  ('suffix', 'which', 'added'), [('', 'auto', 9), ('@best', 'ema', 5), ('@4', 'raw', 0)]
)
def test_a_run_gives_the_checkpoint_and_the_average_that_are_meant(
  run, tiny_config, suffix, which, added, capsys
):
  workdir, saved = run
  tiny_config.weights_which = which
  loaded = weights.load(setup(tiny_config), f'{workdir}{suffix}')
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y + added, rtol=1e-6), loaded, saved)
  said = capsys.readouterr().err
  assert f'step {8 if not suffix else 4}' in said
  assert ('its average' in said) == bool(added)


def test_an_average_begins_at_weights_without_one(run, tiny_config, tmp_path):
  workdir, saved = run
  path = tmp_path / 'raw.safetensors'
  variables_io.save_variables(path, saved, *config_lib.model_fields(tiny_config))
  tiny_config.ema.decay = 0.9
  experiment = setup(tiny_config)
  state = weights.start_from(experiment, experiment.init_state(), path)
  jax.tree.map(np.testing.assert_array_equal, state.ema, saved)
  jax.tree.map(np.testing.assert_array_equal, state.variables, saved)
  checkpointer = checkpoints.Checkpointer(workdir / 'checkpoints')
  checkpointer.save(12, state.replace(ema=None))
  checkpointer.close()
  tiny_config.weights_which = 'ema'
  with pytest.raises(config_lib.ConfigError, match='has no average: leave config'):
    weights.load(setup(tiny_config), str(workdir))


def test_other_classes_start_as_the_seed_says_and_the_same_ones_in_their_order(
  run, tiny_config, capsys
):
  workdir, saved = run
  tiny_config.weights_which = 'raw'
  tiny_config.dataset.class_names = tuple('jihgfedcba')
  experiment = setup(tiny_config)
  state = weights.start_from(experiment, experiment.init_state(), str(workdir))
  kernel = state.params['head_0']['kernel']
  np.testing.assert_array_equal(kernel, saved['params']['head_0']['kernel'][:, ::-1])
  said = capsys.readouterr().err.splitlines()
  assert said[1] == '  head_0, head_1: reordered, the same classes in another order'

  tiny_config.dataset.class_names = ('x', 'y', 'z')
  tiny_config.model.num_classes = 3
  experiment = setup(tiny_config)
  initial = experiment.init_state()
  state = weights.start_from(experiment, initial, str(workdir))
  np.testing.assert_array_equal(
    state.params['head_0']['kernel'], initial.params['head_0']['kernel']
  )
  np.testing.assert_array_equal(state.params['norm_0']['scale'], saved['params']['norm_0']['scale'])
  said = capsys.readouterr().err.splitlines()
  assert said[-1] == '  head_0, head_1: fresh, 10 classes in the weights, 3 here'
  # Nothing is trained in an evaluation.
  with pytest.raises(config_lib.ConfigError, match=r'only training could.*\n.*\n.*fresh, 10 c'):
    weights.load(experiment, str(workdir))


def test_what_is_fresh_can_be_asked_for_and_not_frozen(run, tiny_config):
  workdir, _ = run
  tiny_config.weights_fresh = ('norm_1/.*',)
  experiment = setup(tiny_config)
  initial = experiment.init_state()
  state = weights.start_from(experiment, initial, str(workdir))
  np.testing.assert_array_equal(state.params['norm_1']['scale'], initial.params['norm_1']['scale'])
  # Only what would stay at random is refused.
  tiny_config.freeze = ('norm_.*/.*',)
  weights.start_from(setup(tiny_config), initial, str(workdir))
  tiny_config.weights_fresh, tiny_config.freeze = ('head_1/.*',), ('head_.*',)
  with pytest.raises(
    config_lib.ConfigError, match=r'freeze holds 1 arrays .* such as .head_1/kernel'
  ):
    weights.start_from(setup(tiny_config), initial, str(workdir))
  tiny_config.weights_fresh = ('norms_1/.*',)
  with pytest.raises(ValueError, match=r"weights_fresh: the pattern 'norms_1/\.\*' matches none"):
    weights.start_from(setup(tiny_config), initial, str(workdir))


def test_what_the_config_leaves_open_is_as_in_the_run(run, tiny_config):
  workdir, _ = run
  config = config_lib.default_config()
  config.model = models.model_config('crossvit_tiny_240')
  config.weights = f'{workdir}@best'
  with config.ignore_type():
    config.dataset.image_size = config.dataset.mean = config.dataset.std = None
  notes = weights.complete_config(config)
  for field in ('widths', 'depths', 'patch_sizes', 'image_size', 'branch_image_sizes'):
    assert config.model[field] == tiny_config.model[field]
  assert config.model.num_classes is None
  assert (config.dataset.image_size, config.dataset.mean) == ((8, 8), (0.5,))
  assert 'widths=(16, 32)' in notes[0]
  assert 'mean=(0.5,)' in notes[1]
  weights.complete_config(config, classes=True)
  assert config.model.num_classes == 10
  assert config.dataset.class_names == tuple('abcdefghij')


def test_without_weights_images_are_the_models(tiny_config):
  with tiny_config.ignore_type():
    tiny_config.dataset.image_size = tiny_config.dataset.mean = None
  assert weights.complete_config(tiny_config) == []
  assert tiny_config.dataset.image_size == (8, 8)
  assert len(tiny_config.dataset.mean) == 3


def test_weights_that_are_not_there_are_named(tiny_config):
  tiny_config.weights = '/nowhere'
  with pytest.raises(config_lib.ConfigError, match=r"config.weights='/nowhere' does not exist"):
    weights.complete_config(tiny_config)


def test_a_run_of_another_system_is_refused_before_its_fields_are_taken(run):
  workdir, _ = run
  config = config_lib.default_config()
  config.model = models.model_config('swiftformer_xs')
  config.weights = str(workdir)
  with pytest.raises(config_lib.ConfigError, match="is of 'crossvit_tiny_240', not of 'swiftfor"):
    weights.complete_config(config)
  assert config.model.depths is None


def test_the_weights_that_a_run_began_with_are_no_longer_evaluated(run, tiny_config):
  workdir, _ = run
  config = config_lib.load(epath.Path(workdir / 'config.json'))
  config.weights = 'first.safetensors'
  config_lib.save(config, epath.Path(workdir / 'config.json'))
  weights.complete_config(config, epath.Path(workdir), classes=True)
  assert config.weights is None
  # Others that are asked for are.
  tiny_config.weights = str(workdir)
  weights.complete_config(tiny_config, epath.Path(workdir), classes=True)
  assert tiny_config.weights == str(workdir)


def test_frozen_norms_are_as_in_evaluation(tiny_config, image_batch):
  with tiny_config.unlocked():
    tiny_config.model = models.model_config(
      'swiftformer_xs',
      image_size=(16, 16),
      widths=(16,),
      depths=(1,),
      distillation=False,
      num_classes=10,
      num_channels=1,
    )
  tiny_config.dataset.image_size = (16, 16)
  tiny_config.batch_size = 8
  tiny_config.freeze = ('stem/.*',)
  experiment = setup(tiny_config)
  initial = experiment.init_state()
  before = jax.device_get(initial.variables)
  state, metrics = experiment.train_step(initial, image_batch(tiny_config))
  after = jax.device_get(state.variables)
  for collection in ('params', 'batch_stats'):
    jax.tree.map(
      np.testing.assert_array_equal, after[collection]['stem'], before[collection]['stem']
    )
  assert np.any(after['batch_stats']['norm']['mean'] != before['batch_stats']['norm']['mean'])
  # The first norm's statistics are zeros and ones: its input passes as it is.
  tiny_config.freeze = ('stem/conv_.*',)
  experiment = setup(tiny_config)
  _, trained = experiment.train_step(experiment.init_state(), image_batch(tiny_config))
  assert float(metrics['loss']) != pytest.approx(float(trained['loss']), rel=1e-4)
  tiny_config.model.scan_blocks = True
  with pytest.raises(config_lib.ConfigError, match='does not reach the batch norms'):
    setup(tiny_config)
