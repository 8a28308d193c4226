"""The config that a command line asks for, and what is said where there is none."""

import pathlib
import shutil
import sys

import pytest

from configs import crossvit_digits, finetune
from crossattn_jax.training import command_line
from crossattn_jax.training import config as config_lib

ROOT = pathlib.Path(__file__).parents[2]
EARLIER = ROOT / 'tests' / 'training' / 'earlier_runs' / 'crossvit_digits'


def overridden(*arguments, config=None):
  config = config or crossvit_digits.get_config()
  command_line.override(config, [f'--config.{argument}' for argument in arguments])
  return config


@pytest.fixture(params=['file', 'run'])
def config(request):
  """The same experiment of a file, and as a run wrote it."""
  if request.param == 'file':
    return crossvit_digits.get_config()
  return config_lib.load(EARLIER / 'config.json')


def test_a_file_is_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = command_line.read_file('configs/crossvit_digits.py')
  assert config.to_dict() == crossvit_digits.get_config().to_dict()
  (tmp_path / 'own.py').write_text(
    'from configs import crossvit_digits\n'
    'SIZE = 3\n'
    'def get_config(factor):\n'
    '  config = crossvit_digits.get_config()\n'
    '  config.batch_size = SIZE * int(factor)\n'
    '  return config\n'
  )
  assert command_line.read_file('own.py:4').batch_size == 12


@pytest.mark.parametrize('source', ['configs/finetune.py:biformer_tiny', 'finetune:biformer_tiny'])
def test_an_installed_library_brings_its_experiments(source, tmp_path, monkeypatch, capsys):
  shutil.copytree(ROOT / 'configs', tmp_path / 'installed' / 'configs')
  monkeypatch.setattr(command_line, 'ROOT', tmp_path / 'installed')
  for name in [name for name in sys.modules if name.partition('.')[0] == 'configs']:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setattr(
    sys, 'path', [x for x in sys.path if pathlib.Path(x or '.').resolve() != ROOT]
  )
  monkeypatch.chdir(tmp_path)
  assert command_line.read_file(source).model.name == 'biformer_tiny'
  assert sys.modules['configs.recipes'].__file__.startswith(str(tmp_path))
  said = capsys.readouterr().err
  assert said == f'config: {tmp_path}/installed/configs/finetune.py\n'


def test_the_config_of_a_run_is_a_file_too():
  config = command_line.read_file(str(EARLIER / 'config.json'))
  assert config.to_dict() == config_lib.load(EARLIER / 'config.json').to_dict()


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    (
      'configs/crosvit_digits.py',
      '--config=configs/crosvit_digits.py: no such file; did you mean '
      '--config=configs/crossvit_digits.py?',
    ),
    (
      'crosvit_digits',
      '--config=crosvit_digits: no such file; did you mean --config=configs/cro',
    ),
    (
      'config/crossvit_imagenet.py:crossvit_9_240',
      'did you mean --config=configs/crossvit_imagenet.py:crossvit_9_240?',
    ),
    ('zzz.py', f'--config=zzz.py: no such file; {ROOT / "configs"} holds the experiments'),
    ('configs', '--config=configs: no such file'),
    (str(EARLIER), f'is the workdir of a run; did you mean --workdir={EARLIER}?'),
    ('configs/crossvit_digits.py:tiny', "takes no argument: leave out ':tiny'"),
    (
      'configs/crossvit_imagenet.py:crosvit_small_240',
      "imagenet.py:24: unknown model 'crosvit_small_240'; did you mean 'crossvit_small_240'?",
    ),
    (
      'configs/biformer_imagenet.py:crossvit_small_240',
      "KeyError: 'crossvit_small_240'; 'crossvit_small_240' was given to get_config(model: str = "
      "'biformer_small')",
    ),
    ('configs/mmca_coco.py:tset', "unknown split 'tset'"),
    ('configs/segmentation_ade20k.py:biformer_small', "such as 'biformer_small+upernet'"),
  ],
)
def test_a_file_that_is_not_there_or_takes_no_such_argument_is_named(source, message):
  with pytest.raises(config_lib.ConfigError) as error:
    command_line.read_file(source)
  assert message in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('body', 'message'),
  [
    ('  return {}[3]', 'own.py:4: KeyError: 3'),
    ('  return (', "own.py:4: SyntaxError: '(' was never closed"),
    ('  import nothing_here', "own.py:4: ModuleNotFoundError: No module named 'nothing_here'"),
    ('  config.batch_size = "x"', 'own.py:4: TypeError: Could not override field'),
    (
      '  config.lr = 3.0',
      "own.py:4: AttributeError: unknown config key 'lr'; did you mean "
      'config.schedule.learning_rate?',
    ),
    (
      '  config.schedule.lerning_rate = 3.0',
      "own.py:4: AttributeError: unknown config key 'lerning_rate'; did you mean 'learning_rate'?",
    ),
    ('  pass', 'own.py: get_config() must return a ConfigDict, not None'),
    ('get_config = None', 'own.py has no function get_config'),
  ],
)
def test_an_error_of_a_file_is_its_line_and_one_sentence(tmp_path, body, message):
  file = tmp_path / 'own.py'
  file.write_text(
    'from configs import crossvit_digits\n'
    'def get_config():\n'
    f'  config = crossvit_digits.get_config()\n{body}\n'
  )
  with pytest.raises(config_lib.ConfigError) as error:
    command_line.read_file(str(file))
  assert str(error.value).startswith(f'{tmp_path}/{message}')
  assert '\n' not in str(error.value)
  assert len(str(error.value)) < 300


def test_keys_of_files_and_of_runs_are_set_by_their_types(config):
  changed = overridden(
    'batch_size=32',
    'schedule.learning_rate=1',
    'dataset.image_size=(16,16)',
    'model.remat',
    'model.num_classes=5',
    'optimizer.clip_norm=2',
    'weights=/tmp/run',
    config=config,
  )
  assert changed.batch_size == 32
  assert changed.schedule.learning_rate == 1.0
  assert isinstance(changed.schedule.learning_rate, float)
  assert changed.dataset.image_size == (16, 16)
  assert changed.model.remat is True
  assert changed.model.num_classes == 5
  assert changed.optimizer.clip_norm == 2.0
  assert changed.weights == '/tmp/run'
  config_lib.validate(changed)


def test_every_form_of_config_flags_is_taken():
  config = crossvit_digits.get_config()
  command_line.override(
    config,
    ['-config.batch_size', '32', '--noconfig.dataset.cache', '--config.model.widths=8,16']
    + ['--config.seed', '1', '--config.seed', '-1'],
  )
  assert (config.batch_size, config.dataset.cache, config.seed) == (32, False, -1)
  assert config.model.widths == (8, 16)


def test_none_clears_what_a_placeholder_is_the_default_of(config):
  cleared = overridden(
    'num_epochs=None', 'num_steps=None', 'model.widths=None', 'weights=None', config=config
  )
  assert cleared.num_epochs is None
  assert cleared.num_steps is None
  assert cleared.model.widths is None
  assert cleared.weights is None
  # The type is still known.
  assert overridden('num_steps=7', config=cleared).num_steps == 7
  assert overridden('num_steps=None', 'num_steps=5').num_steps == 5
  assert overridden('num_steps=5', 'num_steps=None').num_steps is None


@pytest.mark.parametrize('network', ['crossvit_tiny_240', 'ccnet_resnet50', 'mmvit_base_audio'])
def test_what_fine_tuning_leaves_to_the_data_may_be_set_and_left_again(network):
  config = finetune.get_config(network)
  set_ = ('dataset.train_split=train', 'schedule.learning_rate=1e-3', 'model.num_classes=3')
  overridden(*set_, config=config)
  assert (config.dataset.train_split, config.schedule.learning_rate) == ('train', 1e-3)
  overridden(*(argument.split('=')[0] + '=None' for argument in set_), config=config)
  assert (config.dataset.train_split, config.schedule.learning_rate) == (None, None)
  assert config.model.num_classes is None


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('batch_size=abc', 'config.batch_size must be of type int, such as 64'),
    ('num_steps=1.5', 'config.num_steps must be of type int'),
    ('schedule.learning_rate=fast', 'config.schedule.learning_rate must be of type float, such as'),
    ('model.remat=5', 'config.model.remat must be of type bool'),
    ('dataset.image_size=8,(8', 'config.dataset.image_size must be of type tuple, such as (8, 8)'),
    ('dataset.image_size=abc', 'config.dataset.image_size must be numbers, such as (8, 8)'),
    ('batch_size=None', 'config.batch_size cannot be None; it is 64'),
    ('schedule.name=None', "config.schedule.name cannot be None; it is 'cosine'"),
    ('ema=0.9', 'config.ema is a section; it has decay, ramp_updates, warmup'),
    ('optimizer=sgd', 'config.optimizer is a section; did you mean config.optimizer.name? it has '),
    ('batch_size', 'Missing value for flag --config.batch_size'),
    ('lr=3', 'unknown config key config.lr; did you mean config.schedule.learning_rate?'),
    ('model.num_head=3', 'config.model.num_head; did you mean config.model.num_heads?'),
  ],
)
def test_a_wrong_override_is_refused_in_one_line(config, argument, message):
  with pytest.raises(config_lib.ConfigError) as error:
    overridden(argument, config=config)
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def test_all_unknown_keys_are_named_at_once():
  with pytest.raises(config_lib.ConfigError) as error:
    overridden('lr=3', 'batch_size=3', 'epochs=5', 'seed=None')
  assert [line.partition(';')[0] for line in str(error.value).splitlines()] == [
    'unknown config key config.lr',
    'unknown config key config.epochs',
    'config.seed cannot be None',
  ]


def test_epochs_beside_steps_that_win_are_refused():
  config = crossvit_digits.get_config()
  config.num_steps = config.evaluation.every_steps = 12
  for key, steps in (
    ('num_epochs', 'num_steps'),
    ('evaluation.every_epochs', 'evaluation.every_steps'),
  ):
    with pytest.raises(config_lib.ConfigError) as error:
      overridden(f'{key}=5', config=config)
    assert str(error.value) == (
      f'config.{key}=5.0 has no effect beside config.{steps}=12; add --config.{steps}=None'
    )
  overridden('num_epochs=5', 'num_steps=None', config=config)
  assert (config.num_epochs, config.num_steps) == (5.0, None)


def test_a_word_that_is_no_flag_is_refused():
  with pytest.raises(config_lib.ConfigError, match="unexpected argument 'word'"):
    command_line.override(crossvit_digits.get_config(), ['--config.batch_size=3', 'word'])


@pytest.mark.parametrize(
  ('name', 'hint'),
  [
    ('workdr', 'did you mean --workdir?'),
    ('batch_size', 'did you mean --config.batch_size?'),
    ('batch-size', 'did you mean --config.batch_size?'),
    ('model', 'did you mean --config.model.name?'),
    ('learning-rate', 'did you mean --config.schedule.learning_rate?'),
    ('epochs', 'did you mean --config.num_epochs?'),
    ('resume', 'the command that started a run continues it'),
    ('zzz', '--help shows all flags'),
  ],
)
def test_an_unknown_flag_is_answered_by_a_flag_or_a_key(name, hint):
  message = command_line.unknown_flag_message(name, ['workdir', 'fixed_batch_size', 'mode'])
  assert message.startswith(f'unknown flag --{name}; ')
  assert hint in message
