"""Weights from a run or from a file, for evaluation and to start from."""

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
    experiment.abstract_state.replace(opt_state=None),
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
  saved = variables_io.load_variables(path).variables
  abstract = experiment.abstract_state.variables
  given, expected = _shapes(saved), _shapes(abstract)
  different = [
    f'{name}: {given.get(name, "missing")} in the file, {expected.get(name, "none")} in the model'
    for name in {**expected, **given}
    if given.get(name) != expected.get(name)
  ]
  if different:
    raise config_lib.ConfigError(
      f'config.weights={str(path)!r} does not fit model {experiment.config.model.name!r}: '
      f'{len(different)} arrays differ:\n  ' + '\n  '.join(different[:5]) + '\n`python -m '
      'crossattn_jax.parity convert --help` says how to replace heads and resize embeddings'
    )
  leaves = {
    parameters.path_string(key): leaf for key, leaf in jax.tree_util.tree_leaves_with_path(saved)
  }
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
  return {
    parameters.path_string(key): tuple(leaf.shape)
    for key, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
