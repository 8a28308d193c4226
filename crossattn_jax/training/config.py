"""The config of an experiment: every key, its default, and what refuses the others."""

from collections.abc import Iterator, Mapping
import contextlib
import difflib
import json
import os
from typing import Any

from etils import epath
import ml_collections
from ml_collections import config_dict

from crossattn_jax import config_errors, models, tasks
from crossattn_jax.data import sources
from crossattn_jax.training import checkpoints, files, optimizers, schedules, suggestions

ConfigError = config_errors.ConfigError

_POSITIVE = (
  'batch_size',
  'accumulation_steps',
  'num_epochs',
  'num_steps',
  'max_bad_steps',
  'evaluation.batch_size',
  'evaluation.every_epochs',
  'checkpoint.every_epochs',
  'checkpoint.keep_last',
  'checkpoint.patience',
  'logging.every_steps',
)


def default_config(task: str = 'classification') -> ml_collections.ConfigDict:
  """Every key of an experiment with its default.

  Keys that may be None hold a reference: a placeholder, or one with a value.

  Args:
    task: name of the task, which brings the sections `task` and `dataset`.

  Returns:
    A locked config: assigning to an unknown key raises `AttributeError`.

  Examples:
    >>> config = default_config('segmentation')
    >>> config.batch_size, config.task.loss
    (128, 'cross_entropy')
  """
  config = ml_collections.ConfigDict()
  # Of everything that is drawn: initial parameters, order of the examples, augmentation, dropout.
  config.seed = 0
  # Examples of a step, on all devices together.
  config.batch_size = 128
  # Splits the batch into that many parts inside a step, one after the other, which saves memory and
  # changes nothing else but batch statistics. (Updates that take several steps are
  # `optimizer.nominal_batch_size`.)
  config.accumulation_steps = 1
  # The length of the run.
  config.num_epochs = config_dict.placeholder(float)
  # The length of the run in steps, which win where both are set.
  config.num_steps = config_dict.placeholder(int)
  # Weights to start from or to evaluate: the workdir of a run (`WORKDIR@best`, `WORKDIR@1200`: its
  # best checkpoint, that of a step), a file or folder of weights, `official` or `timm`.
  # docs/fine_tuning.md says what becomes of each array.
  config.weights = config_dict.placeholder(str)
  # Which parameters of a run or file: 'ema', the moving average; 'raw', those that were trained; or
  # 'auto', the average where there is one.
  config.weights_which = 'auto'
  # Patterns of parameters that start fresh, whatever the weights have for them.
  config.weights_fresh = ()
  # Patterns of parameters that are not trained; their batch norms normalise by running statistics.
  config.freeze = ()
  # Take the place of `schedule.learning_rate` and `num_epochs` where those are None, in a run that
  # starts from `weights`.
  config.from_weights = ml_collections.ConfigDict(
    {'learning_rate': config_dict.placeholder(float), 'num_epochs': config_dict.placeholder(float)}
  )
  # The same in a run that starts from none.
  config.from_scratch = ml_collections.ConfigDict(
    {'learning_rate': config_dict.placeholder(float), 'num_epochs': config_dict.placeholder(float)}
  )
  # Whether a batch that is too large for the data or does not split over the devices, and a warm-up
  # longer than the run, are made to fit, which is said, instead of refused. Of few examples the
  # batch is then an eighth, but at least 8.
  config.fit_to_data = False
  # One of the [models](models.md). The other keys of the section are the fields of this
  # model.
  config.model = ml_collections.ConfigDict({'name': config_dict.placeholder(str)})
  config.update(tasks.default_config(task))
  config.optimizer = optimizers.default_config()
  config.schedule = schedules.default_config()
  # Exponential moving average of parameters and norm statistics, used for evaluation; decay 0 is
  # off. With `warmup` the decay at update n, from 1, is at most n / (9 + n); with `ramp_updates`
  # instead, it is decay * (1 - exp(-n / ramp_updates)).
  config.ema = ml_collections.ConfigDict({'decay': 0.0, 'warmup': True, 'ramp_updates': 0.0})
  config.evaluation = ml_collections.ConfigDict(
    {
      # Examples that are evaluated at once. None: as many as training takes.
      'batch_size': config_dict.placeholder(int),
      # Evaluates after so many steps. With neither this nor `every_epochs`: only at the end.
      'every_steps': config_dict.placeholder(int),
      # The same in epochs. Steps win where both are set.
      'every_epochs': config_dict.placeholder(float),
    }
  )
  config.checkpoint = ml_collections.ConfigDict(
    {
      # Saves after so many steps, besides the end and every evaluation.
      'every_steps': config_dict.placeholder(int),
      # The same in epochs. Steps win where both are set.
      'every_epochs': config_dict.placeholder(float),
      # How many of the newest checkpoints are kept.
      'keep_last': 2,
      # How many of the best ones are kept besides.
      'keep_best': 1,
      # The evaluation metric that says which is best. None: the task's first.
      'best_metric': config_dict.placeholder(str),
      # Whether 'max' or 'min' of it is best. None: what the task knows.
      'best_mode': config_dict.placeholder(str),
      # Ends the run after so many evaluations without a better `best_metric`. None: never early.
      'patience': config_dict.placeholder(int),
      # Which checkpoint `eval` and `predict` use: 'latest', 'best', or a step.
      'use': 'latest',
    }
  )
  config.logging = ml_collections.ConfigDict(
    {
      # Steps from one line of training metrics to the next.
      'every_steps': 10,
      # Whether the end of a run and `eval` leave pictures of predictions, of what is taken for
      # what, of the worst errors, and of the metrics over steps.
      'pictures': True,
      # Project of Weights & Biases that gets metrics and pictures too: 'PROJECT' or
      # 'ENTITY/PROJECT'; None: none does.
      'wandb': config_dict.placeholder(str),
    }
  )
  # Consecutive steps with a non-finite loss or gradient after which the run stops. Such steps
  # never change the parameters.
  config.max_bad_steps = 10
  # Devices along each axis of the mesh; one may be -1: all that are left. The batch is split over
  # `data` and `fsdp`, parameters over `fsdp` and `tensor`, tokens over `sequence`.
  config.mesh = ml_collections.ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1, 'sequence': 1})
  config.sharding = ml_collections.ConfigDict(
    {
      # How parameters are split, tried before the library's own rules: ((path pattern, (axis or
      # None per dimension)), ...).
      'rules': (),
      # Parameters with fewer elements are not split over `fsdp`.
      'fsdp_min_size': 2**14,
    }
  )
  # Of matrix products: 'default', 'high' or 'highest'; see `jax.default_matmul_precision`.
  config.matmul_precision = 'default'
  # First and last step of a profile that TensorBoard opens, such as (10, 20).
  config.profile = ml_collections.ConfigDict({'steps': ()})
  return config.lock()


def complete_default(
  config: Mapping[str, Any] | ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """`default_config` of a config's task, with all fields of the models that the config names.

  Raises:
    ValueError: there is no such task or model.
  """
  default = default_config(config.get('task', {}).get('name', 'classification'))
  with default.unlocked():
    _add_model_fields(default, config)
  return default


def _add_model_fields(default: ml_collections.ConfigDict, config: Any) -> None:
  for key, value in default.items():
    entry = config.get(key)
    if not (isinstance(value, ml_collections.ConfigDict) and hasattr(entry, 'get')):
      continue
    # The fields of a model depend on its name. (A task's own name is known.)
    if set(value) == {'name'} and value.name is None and entry.get('name') is not None:
      default[key] = models.model_config(entry['name'])
    else:
      _add_model_fields(value, entry)


def complete_start(config: ml_collections.ConfigDict) -> list[str]:
  """Sets learning rate and length of the run, where they are None, by how the run starts.

  Returns:
    What was chosen, for the person at the terminal.
  """
  start, chosen = _start(config), []
  if config.schedule.learning_rate is None and start.learning_rate is not None:
    config.schedule.learning_rate = start.learning_rate
    chosen.append(f'schedule.learning_rate={start.learning_rate:g}')
  if config.num_epochs is None and config.num_steps is None and start.num_epochs is not None:
    config.num_epochs = start.num_epochs
    chosen.append(f'num_epochs={start.num_epochs:g}')
  where = 'from scratch' if config.weights is None else f'from {config.weights}'
  return [f'starting {where}: {", ".join(chosen)}'] if chosen else []


def complete_images(config: ml_collections.ConfigDict) -> None:
  """Sets size and normalisation of images where they are None: the model's size, the defaults."""
  dataset = config.dataset
  defaults = tasks.default_config(config.task.name).dataset
  if dataset.get('image_size', ()) is None:
    size = getattr(models.create_model(**config.model), 'image_size', defaults.image_size)
    dataset.image_size = tuple(size)
  for key in ('mean', 'std'):
    if dataset.get(key, ()) is None:
      dataset[key] = defaults[key]


def _start(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  return config.from_scratch if config.weights is None else config.from_weights


def validate(config: ml_collections.ConfigDict) -> None:
  """Refuses a config that cannot be run.

  Raises:
    ConfigError: a key is unknown, missing, or contradicts another; the message names it.
  """
  check_keys(config)
  for problem in value_problems(config):
    raise problem


def check_keys(config: ml_collections.ConfigDict) -> None:
  """Refuses a config with other keys than an experiment has.

  Raises:
    ConfigError: a key is unknown or missing, or there is no model.
    UnknownName: there is no such task or model.
  """
  if config.get('model', {}).get('name') is None:
    raise ConfigError('config.model.name is not set; list_models() shows all models')
  _compare_keys(config)


def value_problems(config: ml_collections.ConfigDict) -> Iterator[ConfigError]:
  """Why a config with the right keys cannot be run: an error for each value."""
  values, defaults = flat(config), flat(default_config())
  if config.num_epochs is None and config.num_steps is None and _start(config).num_epochs is None:
    yield ConfigError('set config.num_epochs or config.num_steps')
  if config.schedule.learning_rate is None and _start(config).learning_rate is None:
    yield ConfigError('set config.schedule.learning_rate')
  for key in _POSITIVE:
    value = values[key]
    if value is not None and value <= 0:
      solution = {} if defaults[key] is None else {key: defaults[key]}
      yield ConfigError(f'config.{key}={value} must be positive', solution)
  size, parts = config.batch_size, config.accumulation_steps
  if size > 0 and parts > 0 and size % parts:
    yield ConfigError(
      f'config.batch_size={size} is not a multiple of config.accumulation_steps={parts}',
      {'batch_size': max(size // parts, 1) * parts},
    )
  for key in (
    'evaluation.every_steps',
    'checkpoint.every_steps',
    'checkpoint.keep_best',
    'ema.ramp_updates',
  ):
    if (values[key] or 0) < 0:
      yield ConfigError(f'config.{key}={values[key]} must not be negative')
  evaluation = config.evaluation
  if config.checkpoint.patience and not (evaluation.every_steps or evaluation.every_epochs):
    yield ConfigError(
      f'config.checkpoint.patience={config.checkpoint.patience} counts evaluations, of which there '
      'is one, at the end; set config.evaluation.every_epochs',
      {'evaluation.every_epochs': 1.0},
    )
  if not 0 <= config.ema.decay < 1:
    yield ConfigError(f'config.ema.decay={config.ema.decay} must be in [0, 1); 0 is off')
  if config.checkpoint.best_mode not in (None, 'max', 'min'):
    yield ConfigError(
      f"config.checkpoint.best_mode={config.checkpoint.best_mode!r} must be 'max', 'min', or None "
      'for what the metric wants'
    )
  steps = tuple(config.profile.steps)
  if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
    yield ConfigError(
      f'config.profile.steps={steps} must be the first and the last step, such as 10,20'
    )


def _compare_keys(config: ml_collections.ConfigDict) -> None:
  given, known = flat(config), flat(complete_default(config))
  for key, value in given.items():
    if key not in known:
      raise ConfigError(suggestions.unknown_key_message(key, known))
    section = isinstance(known[key], ml_collections.ConfigDict)
    if section != isinstance(value, ml_collections.ConfigDict):
      raise ConfigError(f'config.{key} must {"" if section else "not "}be a section of keys')
  # Fields of models may be left out.
  for key in flat(default_config(config.task.name)):
    if key not in given:
      raise ConfigError(f'config.{key} is missing; start from default_config()')


def flat(config: ml_collections.ConfigDict, prefix: str = '') -> dict[str, Any]:
  """All entries of a config by their keys joined by dots, sections included."""
  entries = {}
  for key, value in config.items():
    entries[prefix + key] = value
    if isinstance(value, ml_collections.ConfigDict):
      entries |= flat(value, f'{prefix}{key}.')
  return entries


def optional_keys(config: ml_collections.ConfigDict, prefix: str = '') -> set[str]:
  """The keys of a default config that may be None: those that hold a reference, set or not."""
  keys = set()
  for key, value in config.items(preserve_field_references=True):
    if isinstance(value, config_dict.FieldReference):
      keys.add(prefix + key)
    elif isinstance(value, ml_collections.ConfigDict):
      keys |= optional_keys(value, f'{prefix}{key}.')
  return keys


def expand_user(config: ml_collections.ConfigDict) -> None:
  """Replaces the `~` at the beginning of paths, in place."""
  config.update_from_flattened_dict(
    {
      key: os.path.expanduser(value)
      for key, value in flat(config).items()
      if isinstance(value, str) and value.startswith('~')
    }
  )


def model_fields(config: ml_collections.ConfigDict) -> tuple[str, dict[str, Any]]:
  """Name of the model of a config, and its fields that are set."""
  fields = config.model.to_dict()
  name = fields.pop('name')
  return name, {field: value for field, value in fields.items() if value is not None}


def save(config: ml_collections.ConfigDict, path: epath.Path) -> None:
  """Writes a config as JSON."""
  files.replace_text(path, json.dumps(config.to_dict(), indent=2) + '\n')


def load(path: epath.Path) -> ml_collections.ConfigDict:
  """Reads a config that `save` wrote, earlier versions' too.

  Keys that came later get their defaults; fields of models that are gone may be there, unset.

  Raises:
    ConfigError: the file is missing, or is not JSON.
  """
  try:
    saved = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise ConfigError(f'{path} does not exist: {_no_run(path.parent)}') from error
  except json.JSONDecodeError as error:
    raise ConfigError(f'{path} is not JSON ({error}); give --config instead') from error
  saved = _tuples(saved)
  tasks.upgrade_config(saved.get('task', {}).get('name', 'classification'), saved)
  config = complete_default(saved)
  with config.unlocked(), config.ignore_type():
    _fill_in(config, saved)
  return config


# Keys of `config.dataset` that say which classes a run has, and how files and pictures show them.
_CLASSES = ('class_names', 'category_ids', 'unseen_classes', 'palette', 'class_values')


def take_classes(config: ml_collections.ConfigDict, workdir: epath.Path | None) -> None:
  """Takes the classes that a config leaves open from the run in a workdir, where it has them.

  So the names of a trained model are its own, whatever has become of its training data since.
  """
  path = None if workdir is None else workdir / 'config.json'
  if config.get('weights') is not None or path is None or not path.exists():
    return
  copy_classes(load(path), config)


def copy_classes(run: ml_collections.ConfigDict, config: ml_collections.ConfigDict) -> None:
  """Takes the classes that a config leaves open from that of a run, where it has them."""
  if run.dataset.get('class_names') and not config.dataset.get('class_names'):
    config.dataset.update({key: run.dataset[key] for key in _CLASSES if key in run.dataset})
    if config.model.get('num_classes') is None:
      with config.unlocked():
        config.model.num_classes = run.model.num_classes


def refuse_other_classes(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
  """Refuses to continue the run in a workdir with other classes than it was begun with.

  Raises:
    ConfigError: the message names those that differ.
  """
  begun = bool(checkpoints.find_steps(workdir / 'checkpoints'))
  if not begun or not (workdir / 'config.json').exists():
    return
  there, here = (
    each.dataset.get('class_names') for each in (load(workdir / 'config.json'), config)
  )
  changes = sources.class_changes(there, here) if there and here else ''
  if changes:
    raise ConfigError(
      f'the run in {workdir} has the classes {sources.shown(there)}; those of the data now differ: '
      f'{changes}. Restore them, or train on the data as it is in another workdir'
    )


def _fill_in(config: ml_collections.ConfigDict, saved: dict[str, Any]) -> None:
  for key, value in saved.items():
    if isinstance(value, dict) and isinstance(config.get(key), ml_collections.ConfigDict):
      _fill_in(config[key], value)
    elif key in config or value is not None:
      config[key] = value


def _no_run(folder: epath.Path) -> str:
  """Why a folder is not the workdir of a run, and which one beside it is."""
  state = 'is not the workdir of a run' if folder.exists() else 'does not exist either'
  problem = f'{folder} {state}'
  with contextlib.suppress(OSError):  # A folder that may not be read holds no hint.
    beside = [path.name for path in folder.parent.iterdir()]
    for name in difflib.get_close_matches(folder.name, beside):
      if (folder.parent / name / 'config.json').exists():
        return f'{problem}; did you mean {folder.parent / name}?'
  return f'{problem}; name the --workdir of a run, or give --config'


def _tuples(value: Any) -> Any:
  """JSON has no tuples: makes every list one."""
  if isinstance(value, dict):
    return {key: _tuples(entry) for key, entry in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(entry) for entry in value)
  return value
