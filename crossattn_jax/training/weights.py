"""Weights from a run or from a file, for evaluation and to start from."""

from collections.abc import Iterable, Mapping
import contextlib
import dataclasses
import functools
import json
import os
import re
from typing import Any

from etils import epath
from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from crossattn_jax import models, parallel, tasks
from crossattn_jax.conversion import fitting, opening, published
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.data.classification import imagenet
from crossattn_jax.parallel import parameters
from crossattn_jax.training import checkpoints, messages, patterns
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import state as state_lib

# Of a model: what data or a run decide, whatever the weights were trained with.
_OF_THE_RUN = re.compile(
  r'num_classes|num_channels|modalities|(param_)?dtype|.*_rate|remat|scan_blocks|implementation'
)
# Of a data set: what makes the images that weights know.
_PREPROCESSING = ('image_size', 'mean', 'std')


@dataclasses.dataclass(frozen=True)
class _Network:
  """A network that needs weights.

  Attributes:
    key: of the config that says which, for messages.
    name: of the model.
    overrides: of `create_model`.
    abstract: shapes, dtypes and shardings of its variables.
    class_names: in the order of its outputs; empty where they are not known.
  """

  key: str
  name: str
  overrides: Mapping[str, Any]
  abstract: Any
  class_names: tuple[str, ...] = ()


def _network(experiment: experiment_lib.Experiment) -> _Network:
  """The network that is trained or evaluated."""
  config = experiment.config
  return _Network(
    'config.weights',
    *config_lib.model_fields(config),
    experiment.abstract_state.variables,
    tuple(config.dataset.get('class_names', ())),
  )


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


def complete_config(
  config: ml_collections.ConfigDict,
  workdir: epath.Path | None = None,
  *,
  classes: bool = False,
  with_data: bool = True,
) -> list[str]:
  """Fills in, in place, what the config leaves open and its weights say.

  Fields of the model that are None are as the weights were saved; the number of classes, the
  channels of images and what only training knows are not theirs to say. Size and normalisation of
  images that are None are those of the run that the weights are of, or else the defaults.

  Args:
    config: of the experiment.
    workdir: of the run. Once training has begun, the run's own config says all this.
    classes: whether the classes are those of the weights too, or of the run, as where they are
      evaluated. Weights with which the run began are then those of the run.
    with_data: whether a data set is read, whose names of classes then count before those in the
      files of others, which are for people.

  Returns:
    What was chosen, for the person at the terminal.

  Raises:
    ValueError: the weights cannot be read, or are of another model.
  """
  notes, run = [], None
  trained = workdir is not None and bool(checkpoints.find_steps(workdir / 'checkpoints'))
  begun = trained
  if classes:
    given = config.get('weights')
    if begun and given and given == config_lib.load(workdir / 'config.json').weights:
      config.weights = None  # With which the run began.
    config_lib.take_classes(config, workdir)
    begun = False
  if trained and (workdir / 'config.json').exists():
    _take_anchors(config, *config_lib.model_fields(config_lib.load(workdir / 'config.json')))
  if config.get('weights') is not None:
    source = str(workdir) if begun else config.weights
    run, name, saved, names = _saved(config, source, with_data)
    if classes and run is not None and name == config.model.name:
      config_lib.copy_classes(run, config)
    if classes:
      _take_classes(config, name, saved, names)
    taken = {
      field: value
      for field, value in fitting.inherit(name, saved, *config_lib.model_fields(config)).items()
      if config.model.get(field) is None and not _OF_THE_RUN.fullmatch(field)
    }
    taken.pop('anchor_sizes', None)
    _check_fields(config, source, name, _plain(taken))
    with config.unlocked(), config.ignore_type():
      config.model.update(_plain(taken))
    taken |= _take_anchors(config, name, saved)
    if taken:
      shown = ', '.join(f'{field}={value}' for field, value in taken.items())
      notes.append(f'the model is built as its weights were saved: {shown}')
  chosen = {}
  for key in _PREPROCESSING if run is not None else ():
    if config.dataset.get(key, ()) is None and run.dataset.get(key) is not None:
      config.dataset[key] = chosen[key] = run.dataset[key]
  if chosen:
    shown = ', '.join(f'{key}={value}' for key, value in chosen.items())
    notes.append(f'images are made as those of {config.weights}: {shown}')
  config_lib.complete_images(config)
  return notes


def _saved(
  config: ml_collections.ConfigDict, source: str, with_data: bool
) -> tuple[ml_collections.ConfigDict | None, str, Mapping[str, Any], tuple[str, ...]]:
  """The run that weights are of, if any, and their network: its name, overrides and classes."""
  folder, _ = _run(source)
  if folder is not None:
    run = config_lib.load(folder / 'config.json')
    return run, *config_lib.model_fields(run), tuple(run.dataset.get('class_names', ()))
  fields = config_lib.model_fields(config)
  opened = _open_file('config.weights', source, *fields, config.weights_which)
  names = opened.class_names
  if source in published.SOURCES:
    names = names or _published_classes(opened.name, opened.overrides)
  if opened.report and with_data:
    names = ()
  return None, opened.name, opened.overrides, names


def _published_classes(name: str, saved: Mapping[str, Any]) -> tuple[str, ...]:
  """Those of ImageNet, where published weights have as many; else nobody says them."""
  count = getattr(models.create_model(name, **saved), 'num_classes', None)
  return tuple(imagenet.names()) if count == imagenet.NUM_CLASSES else ()


def _take_classes(
  config: ml_collections.ConfigDict, name: str, saved: Mapping[str, Any], names: tuple[str, ...]
) -> None:
  if 'class_names' not in config.dataset or name != config.model.name:
    return
  if names and not config.dataset.class_names:
    config.dataset.class_names = names
  if config.model.get('num_classes', 0) is None:
    with config.unlocked():
      config.model.num_classes = saved.get('num_classes') or len(names) or None


def _take_anchors(
  config: ml_collections.ConfigDict, name: str, saved: Mapping[str, Any]
) -> dict[str, Any]:
  """Sets the anchors of a head that is taken with them, before data give others; returns them."""
  wanted, given = config_lib.model_fields(config)
  fields = [{*models.model_config(each)} for each in (name, wanted)]
  if 'anchor_sizes' in given or not all('anchor_sizes' in each for each in fields):
    return {}
  theirs, ours = models.create_model(name, **saved), models.create_model(wanted, **given)
  if len(theirs.modalities) != len(ours.modalities):
    return {}  # The head starts fresh.
  with config.unlocked():
    config.model.anchor_sizes = theirs.anchor_sizes
  return {'anchor_sizes': theirs.anchor_sizes}


def _check_fields(
  config: ml_collections.ConfigDict, source: str, name: str, taken: Mapping[str, Any]
) -> None:
  """Refuses weights of a model whose fields mean nothing, or something else, to that wanted."""
  wanted, given = config_lib.model_fields(config)
  try:
    models.create_model(wanted, **{**given, **taken})
  except (TypeError, ValueError) as error:
    if name == wanted:
      raise
    raise config_lib.ConfigError(
      f'config.weights={source!r} is of {name!r}, not of {wanted!r}'
    ) from error


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
  return {field: tuple(x) if isinstance(x, list) else x for field, x in fields.items()}


def load(experiment: experiment_lib.Experiment, source: str) -> Any:
  """Reads variables to evaluate: from a file, a folder or another run's workdir; says what it took.

  Args:
    experiment: which model.
    source: as `config.weights` has it.

  Returns:
    Variables on the devices of the experiment's mesh.

  Raises:
    FileNotFoundError: there is no such file or checkpoint.
    ConfigError: the weights are of another model; the message names the arrays that differ.
  """
  return _load(_network(experiment), experiment, str(source))


def load_frozen(experiment: experiment_lib.Experiment) -> dict[str, Any]:
  """Reads the variables of the task's frozen models, each from its own file or run.

  Args:
    experiment: whose task names them.

  Returns:
    Variables by the model's name in the task, on the devices of the experiment's mesh.

  Raises:
    ConfigError: the config does not say where they are, or they are of another model.
    FileNotFoundError: there is no such file or checkpoint.
  """
  loaded = {}
  for name, model in experiment.task.frozen_models.items():
    if model.weights is None:
      raise config_lib.ConfigError(
        f'set {model.config_key}: weights of {model.name!r}, such as the workdir of a run, a '
        'checkpoint, or `timm`'
      )
    abstract = experiment.abstract_state.frozen[name]
    network = _Network(model.config_key, model.name, model.overrides, abstract)
    loaded[name] = _load(network, experiment, model.weights)
  return loaded


def start_from(
  experiment: experiment_lib.Experiment,
  state: state_lib.TrainState,
  source: str,
) -> state_lib.TrainState:
  """Replaces the variables of an initial state, and the average, by loaded ones.

  Args:
    experiment: which model.
    state: initial; what the weights do not have stays as it is there.
    source: as `config.weights` has it.

  Returns:
    The state to start from.

  Raises:
    ConfigError: as in `load`; or what starts fresh would stay so, since `config.freeze` holds it.
  """
  config, network = experiment.config, _network(experiment)
  opened = _open(str(source), network, experiment)
  paths = [*_by_path(network.abstract), *_by_path(opened.variables)]
  inner = dict.fromkeys(path.partition('/')[2] for path in paths)
  patterns.check('weights_fresh', config.weights_fresh, inner)
  fitted = _fit(network, opened, str(source), config.weights_fresh)
  initial = _by_path(state.variables)
  frozen = [
    path
    for path in fitted.fresh
    if path.startswith('params/')
    and patterns.matches(config.freeze, path.partition('/')[2])
    and jnp.ptp(initial[path]) > 0  # Drawn: constants, as of positions, may stay what they are.
  ]
  if frozen:
    raise config_lib.ConfigError(
      f'config.freeze holds {len(frozen)} arrays that config.weights={source!r} does not give and '
      f'that would stay untrained, such as {frozen[0].partition("/")[2]!r}: leave them out of it'
    )
  _tell(opened, fitted)
  variables = _on_devices(fitted, network.abstract, initial)
  params = variables['params']
  model_state = {name: tree for name, tree in variables.items() if name != 'params'}
  # The step donates its state: parameters and average may not share a buffer.
  ema = None if state.ema is None else jax.tree.map(lambda x: x.copy(), variables)
  return state.replace(params=params, model_state=model_state, ema=ema)


def _load(network: _Network, experiment: experiment_lib.Experiment, source: str) -> Any:
  """Variables of which nothing starts fresh."""
  opened = _open(source, network, experiment)
  if _run(source)[0] is not None and opened.name != network.name:
    raise config_lib.ConfigError(
      f'{network.key}={source!r} is a run of {opened.name!r}, not of {network.name!r}'
    )
  fitted = _fit(network, opened, source)
  if fitted.fresh:
    raise config_lib.ConfigError(
      f'{network.key}={source!r} does not give all of {network.name!r}, which only training could '
      'add: train with these weights first, or take the classes and settings they have:\n  '
      + '\n  '.join(fitted.lines())
    )
  _tell(opened, fitted)
  return _on_devices(fitted, network.abstract)


def _open(
  source: str, network: _Network, experiment: experiment_lib.Experiment
) -> opening.OpenedWeights:
  which = experiment.config.weights_which
  folder, use = _run(source)
  if folder is not None:
    return _open_run(folder, use, which, experiment.mesh)
  opened = _open_file(network.key, source, network.name, network.overrides, which)
  if opened.report:
    # Names in others' files are for people, and written in many ways.
    return dataclasses.replace(opened, class_names=())
  return opened


def _open_file(
  key: str, source: str, name: str, overrides: Mapping[str, Any], which: str
) -> opening.OpenedWeights:
  files = opening.split_source(source)
  if missing := [x for x in files if x not in published.SOURCES and not os.path.exists(x)]:
    raise config_lib.ConfigError(
      f'{key}={missing[0]!r} does not exist: give the workdir of a run, a file or folder of '
      f'weights, or one of {", ".join(published.SOURCES)}'
    )
  overrides = {f: x for f, x in overrides.items() if f not in fitting.CHANGED_BY_FITTING}
  # Read twice at the beginning of a run, for the config and for the arrays.
  return _open_file_once(source, name, json.dumps(overrides), which)


@functools.lru_cache(maxsize=1)
def _open_file_once(source: str, name: str, overrides: str, which: str) -> opening.OpenedWeights:
  return opening.open_weights(source, name, json.loads(overrides), which=which)


def _run(source: str) -> tuple[epath.Path | None, str | None]:
  """The workdir of the run that is meant, 'WORKDIR' or 'WORKDIR@CHECKPOINT', and the checkpoint."""
  workdir, _, use = source.rpartition('@')
  for folder, checkpoint in ((source, None), (workdir, use)):
    path = epath.Path(folder)
    if folder and (path / 'config.json').exists() and (path / 'checkpoints').exists():
      return path, checkpoint
  return None, None


def _open_run(
  workdir: epath.Path, use: str | None, which: str, mesh: jax.sharding.Mesh
) -> opening.OpenedWeights:
  """Reads the checkpoint that the run's own evaluation uses, or another one of it."""
  config = config_lib.load(workdir / 'config.json')
  use = str(config.checkpoint.use if use is None else use)
  metric = (None, 'max')
  if use == 'best':
    metric = experiment_lib.best_metric(tasks.create_task(config))
  sharding, average = parallel.replicated(mesh), False

  def wanted(arrays: Mapping[str, Any]) -> dict[str, Any]:
    nonlocal average
    average = which != 'raw' and any(path.startswith('ema/') for path in arrays)
    if which == 'ema' and not average:
      raise config_lib.ConfigError(
        f"{workdir} has no average: leave config.weights_which at 'auto'"
      )
    tops = ('ema/',) if average else ('params/', 'model_state/')
    return traverse_util.unflatten_dict(
      {
        path: jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding)
        for path, (dtype, shape) in arrays.items()
        if path.startswith(tops)
      },
      sep='/',
    )

  with contextlib.closing(
    checkpoints.Checkpointer(workdir / 'checkpoints', best_metric=metric[0], best_mode=metric[1])
  ) as checkpointer:
    restored = checkpointer.restore_partial(wanted, int(use) if use.isdigit() else use)
  state = jax.tree.map(np.asarray, restored.state)
  variables = (
    state['ema'] if average else {'params': state['params'], **state.get('model_state', {})}
  )
  name, overrides = config_lib.model_fields(config)
  return opening.OpenedWeights(
    name,
    overrides,
    variables,
    tuple(config.dataset.get('class_names', ())),
    f'run {workdir} of {name}, step {restored.step}{", its average" if average else ""}',
  )


def _fit(
  network: _Network, opened: opening.OpenedWeights, source: str, fresh: Iterable[str] = ()
) -> fitting.Fitted:
  module = models.create_model(network.name, **network.overrides)
  try:
    return fitting.fit(
      opened,
      network.name,
      module,
      network.abstract,
      fresh=fresh,
      class_names=network.class_names,
    )
  except mapping_lib.MappingError as error:
    problem = f'does not fit model {network.name!r}'
    if opened.name != network.name:
      problem = (
        f'is {"a run" if _run(source)[0] else ""} of {opened.name!r}, not of {network.name!r}'
      )
    raise config_lib.ConfigError(f'{network.key}={source!r} {problem}. {error}') from error


def _tell(opened: opening.OpenedWeights, fitted: fitting.Fitted) -> None:
  first, *rest = fitted.lines()
  messages.say(f'weights: {opened.told}: {first}', *(f'  {line}' for line in rest))


def _by_path(tree: Any) -> dict[str, Any]:
  return traverse_util.flatten_dict(dict(tree), sep='/')


def _on_devices(
  fitted: fitting.Fitted, abstract: Any, initial: Mapping[str, Any] | None = None
) -> Any:
  """Puts arrays where they belong; what the weights do not give is taken from `initial`."""
  _open_file_once.cache_clear()

  def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    name = parameters.path_string(path)
    if name not in fitted.arrays:
      return initial[name]
    return jax.device_put(fitted.arrays[name], leaf.sharding)

  return jax.tree_util.tree_map_with_path(place, abstract)
