"""Weights from a run or from a file, for evaluation and to start from."""

import contextlib
from typing import Any

from etils import epath
import jax

from crossattn_jax.models import variables_io
from crossattn_jax.parallel import parameters
from crossattn_jax.training import checkpoints
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import state as state_lib


def restore(
  experiment: experiment_lib.Experiment, checkpointer: checkpoints.Checkpointer, which: str
) -> Any:
  """Reads the variables to evaluate from a run's checkpoint.

  Args:
    experiment: which model.
    checkpointer: of the run.
    which: 'latest', 'best' or a step.

  Returns:
    Variables on the devices of the experiment's mesh.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    CheckpointMismatch: it is of another model.
  """
  restored = checkpointer.restore_partial(
    experiment.abstract_state.replace(opt_state=None, frozen={}),
    int(which) if str(which).isdigit() else which,
    config=experiment.config,
  )
  return restored.state.eval_variables


def load(experiment: experiment_lib.Experiment, path: epath.Path) -> Any:
  """Reads variables from another run's workdir or from a converted file.

  Args:
    experiment: which model.
    path: a workdir, or a file that `python -m crossattn_jax.parity convert` wrote.

  Returns:
    Variables on the devices of the experiment's mesh.

  Raises:
    FileNotFoundError: there is no such file or checkpoint.
    ConfigError: the file is of another model; the message names the first differing arrays.
  """
  if path.is_dir():
    checkpointer = checkpoints.Checkpointer(path / 'checkpoints')
    return restore(experiment, checkpointer, 'latest')
  model = experiment.config.model.name
  return _read_file(path, experiment.abstract_state.variables, 'config.weights', model)


def load_frozen(experiment: experiment_lib.Experiment) -> dict[str, Any]:
  """Reads the variables of the task's frozen models, each from its own file or run.

  Args:
    experiment: whose task names them.

  Returns:
    Variables by the model's name in the task, on the devices of the experiment's mesh.

  Raises:
    ConfigError: the config does not say where they are, or they are of another model.
    FileNotFoundError: there is no such file or checkpoint.
    CheckpointMismatch: the run has other arrays.
  """
  loaded = {}
  for name, model in experiment.task.frozen_models.items():
    if model.weights is None:
      raise config_lib.ConfigError(
        f'set {model.config_key}: a file of {model.name!r} that `python -m crossattn_jax.parity '
        'convert` wrote, or the workdir of a run'
      )
    path, abstract = epath.Path(model.weights), experiment.abstract_state.frozen[name]
    if path.is_dir():
      loaded[name] = _read_run(path, abstract, model.config_key, model.name)
    else:
      loaded[name] = _read_file(path, abstract, model.config_key, model.name)
  return loaded


def _read_run(path: epath.Path, abstract: Any, key: str, model: str) -> Any:
  """Reads the variables that a run would evaluate, whatever model this experiment trains."""
  config = config_lib.load(path / 'config.json')
  if config.model.name != model:
    raise config_lib.ConfigError(
      f'{key}={str(path)!r} is a run of {config.model.name!r}, not of {model!r}'
    )
  rest = {name: tree for name, tree in abstract.items() if name != 'params'}
  averaged = config.ema.decay > 0
  wanted = {'ema': abstract} if averaged else {'params': abstract['params'], 'model_state': rest}
  with contextlib.closing(checkpoints.Checkpointer(path / 'checkpoints')) as checkpointer:
    state = checkpointer.restore_partial(wanted).state
  return state['ema'] if averaged else {'params': state['params'], **state['model_state']}


def _read_file(path: epath.Path, abstract: Any, key: str, model: str) -> Any:
  """Reads a variables file into the dtypes and shardings of `abstract`."""
  saved = variables_io.load_variables(path).variables
  given, expected = _shapes(saved), _shapes(abstract)
  different = [
    f'{name}: {given.get(name, "missing")} in the file, {expected.get(name, "none")} in the model'
    for name in {**expected, **given}
    if given.get(name) != expected.get(name)
  ]
  if different:
    raise config_lib.ConfigError(
      f'{key}={str(path)!r} does not fit model {model!r}: '
      f'{len(different)} arrays differ:\n  ' + '\n  '.join(different[:5]) + '\n`python -m '
      'crossattn_jax.parity convert --help` says how to replace heads and resize embeddings'
    )
  leaves = parameters.leaves_by_path(saved)
  return jax.tree_util.tree_map_with_path(
    lambda key, leaf: jax.device_put(
      leaves[parameters.path_string(key)].astype(leaf.dtype), leaf.sharding
    ),
    abstract,
  )


def start_from(
  experiment: experiment_lib.Experiment, state: state_lib.TrainState, path: epath.Path
) -> state_lib.TrainState:
  """Replaces the variables of an initial state, and the average, by loaded ones."""
  variables = load(experiment, path)
  params = variables['params']
  model_state = {name: tree for name, tree in variables.items() if name != 'params'}
  # The step donates its state: parameters and average may not share a buffer.
  ema = None if state.ema is None else jax.tree.map(lambda x: x.copy(), variables)
  return state.replace(params=params, model_state=model_state, ema=ema)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {path: tuple(leaf.shape) for path, leaf in parameters.leaves_by_path(tree).items()}
