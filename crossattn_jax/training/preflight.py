"""What can be known before step 1: all problems at once, with the flags that solve them."""

from collections.abc import Callable
import difflib
import shlex
from typing import Any, TypeVar

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections

from crossattn_jax import config_errors, long_work, parallel, tasks
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import messages, schedules, weights, weights_and_biases

_T = TypeVar('_T')

# Of the metrics in a message.
_SHOWN = 12
# Changes that `config.fit_to_data` makes.
_FITTED = {
  'batch_size',
  'evaluation.batch_size',
  'schedule.warmup_epochs',
  'schedule.warmup_steps',
  'schedule.warmup_min_steps',
}
# An epoch of few examples is so many steps, unless batches would be smaller than the least.
_FITTED_STEPS = 8
_LEAST_FITTED_BATCH = 8


class SeveralProblems(config_errors.ConfigError):
  """A config with more than one problem: the message lists them, and flags that solve them."""


def setup(
  config: ml_collections.ConfigDict,
  mesh: Mesh | None = None,
  workdir: epath.Path | None = None,
  *,
  with_data: bool = True,
) -> experiment_lib.Experiment:
  """Builds an experiment to train, or says all that is wrong with it.

  What solves a problem is in place for the checks that follow: they check the flags of the message.

  Args:
    config: of the experiment. What only the data can say is filled in, which is said; see
      `tasks.complete_config`.
    mesh: over all devices as the config says by default.
    workdir: of the run, where there is one.
    with_data: whether the data set is at hand.

  Returns:
    The experiment, its step traced. No array has been made.

  Raises:
    ValueError: the only problem there is, or `SeveralProblems`.
    FileNotFoundError: the only problem there is.
  """
  checks = _Checks(config)
  if checks.run(_has_its_keys) is None:
    raise checks.error()
  for problem in config_lib.value_problems(checks.config):
    checks.record(problem)
  notes = config_lib.complete_start(checks.config)
  if not _has_length(checks.config):
    checks.config.num_steps = 10**6  # For the checks that follow.
  checks.run(lambda config: weights_and_biases.check(config.logging.wandb))
  if mesh is None:
    mesh = checks.run(lambda config: parallel.create_mesh(**config.mesh))
  if mesh is not None:
    checks.run(experiment_lib.check_batch_sizes, mesh)
  notes += checks.run(weights.complete_config, workdir) or []
  checks.run(config_lib.complete_images)  # Weights that cannot be read leave them open.
  if with_data:
    with long_work.said(f'opening data set {checks.config.dataset.name!r}'):
      found = checks.run(tasks.complete_config)
    notes += found or []
    with_data = found is not None  # Else it is not known what to check.
  if workdir is not None:
    checks.run(config_lib.refuse_other_classes, workdir)
  steps_per_epoch, experiment = None, None
  has_task = checks.run_task(lambda task: task) is not None
  if has_task:
    checks.run_task(_check_best_metric)
  if has_task and with_data:
    with long_work.said('reading the first examples'):
      checks.run_task(_check_first_example, 'eval_split')
      checks.run_task(_check_first_example, 'train_split')
      checks.run_task(lambda task: task.check_data())
      steps_per_epoch = checks.run_task(_steps_per_epoch, mesh)
  if steps_per_epoch is None:
    steps_per_epoch = experiment_lib.any_steps_per_epoch(checks.config)
  checks.run(_check_profile, steps_per_epoch)
  schedule = checks.run(experiment_lib.create_schedule, steps_per_epoch)
  if has_task and mesh is not None:
    with long_work.said('tracing the training step'):
      experiment = checks.run_task(_assemble, mesh, steps_per_epoch, schedule)
  if checks.problems:
    raise checks.error()
  with config.unlocked():
    config.update(checks.config)
  messages.say(*notes, *checks.fitted)
  _warn_of_image_size(experiment)
  return experiment


class _Checks:
  """Runs checks and keeps the problems that they find.

  Attributes:
    config: that is checked: with all changes that solve what was found up to now.
    problems: errors, each with the changes that solve it; none where only a person can say.
    fitted: what `config.fit_to_data` solved instead, in words.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    self.config = config.copy_and_resolve_references()
    self.problems: list[tuple[Exception, dict[str, Any]]] = []
    self.fitted: list[str] = []
    self._task: tasks.Task | None = None

  def run(self, check: Callable[..., _T], *args: Any) -> _T | None:
    """`check(config, *args)`; None where it finds a problem that has no certain solution."""
    while True:
      try:
        return check(self.config, *args)
      except (ValueError, FileNotFoundError) as error:
        if not self.record(error):
          return None

  def run_task(self, check: Callable[..., _T], *args: Any) -> _T | None:
    """`run` for a check of the task."""

    def check_task(config: ml_collections.ConfigDict) -> _T:
      if self._task is None:
        self._task = tasks.create_task(config)
      return check(self._task, *args)

    return self.run(check_task)

  def record(self, error: Exception) -> bool:
    """Keeps a problem and solves it in the config, where that is certain: whether it was."""
    if str(error) in [str(problem) for problem, _ in self.problems]:
      return False
    if self.problems and isinstance(error, config_errors.MissingFromData):
      return False
    changes = _solution(error, self.config)
    if self.config.fit_to_data and changes and changes.keys() <= _FITTED:
      fitting = ', '.join(f'{key}={value}' for key, value in changes.items())
      reason, _, _ = str(error).rpartition('; ')
      self.fitted.append(f'fitted: {fitting}, since {reason or error}')
    else:
      self.problems.append((error, changes))
    if changes:
      with self.config.ignore_type():
        self.config.update_from_flattened_dict(changes)
      self._task = None
    return bool(changes)

  def error(self) -> Exception:
    """The only problem, or all of them in one."""
    if len(self.problems) == 1:
      return self.problems[0][0]
    lines = [f'{len(self.problems)} problems before step 1:']
    for number, (problem, _) in enumerate(self.problems, start=1):
      lines.append(f'  {number}. ' + str(problem).replace('\n', '\n     '))
    changes = {key: value for _, changes in self.problems for key, value in changes.items()}
    if changes:
      solved = [str(i) for i, (_, changes) in enumerate(self.problems, start=1) if changes]
      which = 'all of them' if len(solved) == len(self.problems) else ', '.join(solved)
      flags = (shlex.quote(f'--config.{key}={value}') for key, value in changes.items())
      lines += [f'Add to the command, to solve {which}:', '  ' + ' '.join(flags)]
    return SeveralProblems('\n'.join(lines), changes)


def _solution(error: Exception, config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The changes of a config that solve a problem of it; none where that is not certain."""
  if isinstance(error, config_errors.UnknownName) and error.nearest is not None:
    wrong = (key for key, value in config_lib.flat(config).items() if value == error.name)
    return dict.fromkeys(wrong, error.nearest)
  return getattr(error, 'changes', {})


def _has_its_keys(config: ml_collections.ConfigDict) -> bool:
  config_lib.check_keys(config)
  return True


def _has_length(config: ml_collections.ConfigDict) -> bool:
  length = config.num_epochs if config.num_steps is None else config.num_steps
  return length is not None and length > 0


def _check_profile(config: ml_collections.ConfigDict, steps_per_epoch: int) -> None:
  """Refuses a profile that would not end, and so not be written."""
  total = experiment_lib.count_steps(config, steps_per_epoch)
  if config.profile.steps and config.profile.steps[-1] > total:
    raise config_errors.ConfigError(
      f'config.profile.steps={tuple(config.profile.steps)} ends after the {total} steps of the run'
    )


def _check_best_metric(task: tasks.Task) -> None:
  """Refuses a metric that the task does not have, and the wrong end of its values."""
  section, modes = task.config.checkpoint, task.metric_modes
  name = section.best_metric
  if name is None:
    return
  if name not in modes:
    shown = ', '.join([*list(modes)[:_SHOWN], *(['...'] if len(modes) > _SHOWN else [])])
    near = difflib.get_close_matches(name, modes, n=1)
    raise config_errors.ConfigError(
      f'config.checkpoint.best_metric={name!r} is not among the metrics: {shown}'
      + (f'; did you mean {near[0]!r}?' if near else ''),
      {'checkpoint.best_metric': near[0]} if near else {},
    )
  if section.best_mode not in (None, modes[name]):
    end = {'max': 'largest', 'min': 'smallest'}[modes[name]]
    raise config_errors.ConfigError(
      f'config.checkpoint.best_mode={section.best_mode!r}, but of {name!r} the {end} value is '
      f'best; set config.checkpoint.best_mode={modes[name]}, or leave it None',
      {'checkpoint.best_mode': modes[name]},
    )


def _check_first_example(task: tasks.Task, key: str) -> None:
  """Opens a split and reads one example; of a training split, augments one too."""
  split = task.config.dataset[key]
  examples = task.examples(split)
  if not examples.epoch_length:
    raise ValueError(
      f'split {split!r} of dataset {task.config.dataset.name!r} is empty; set config.dataset.{key}'
    )
  examples.read(0)
  if key == 'train_split':
    examples.train_stream(task.config.seed)[0]


def _steps_per_epoch(task: tasks.Task, mesh: Mesh | None) -> int:
  """Steps of an epoch, which has at least one whole batch."""
  config = task.config
  length = largest = task.examples(config.dataset.train_split).epoch_length
  if config.fit_to_data:
    largest = min(length, max(length // _FITTED_STEPS, _LEAST_FITTED_BATCH))
  if config.batch_size > largest:
    shards = 1 if mesh is None else mesh.shape['data'] * mesh.shape['fsdp']
    multiple = shards * config.accumulation_steps
    fitting = largest // multiple * multiple
    raise config_errors.ConfigError(
      f'config.batch_size={config.batch_size}, but an epoch of {config.dataset.name!r}, split '
      f'{config.dataset.train_split!r}, has {length} examples; '
      + (
        f'set config.batch_size={fitting}'
        if fitting
        else f'fewer than the {multiple} that devices and accumulation steps make the least batch'
      ),
      {'batch_size': fitting} if fitting else {},
    )
  return task.steps_per_epoch(config.batch_size)


def _assemble(
  task: tasks.Task, mesh: Mesh, steps_per_epoch: int, schedule: schedules.Schedule | None
) -> experiment_lib.Experiment:
  """The experiment; that it can be traced says that the model takes its inputs."""
  schedule = schedule or schedules.Schedule(lambda step, warmup_start: jnp.zeros(()))
  experiment = experiment_lib.assemble(task, mesh, steps_per_epoch, schedule)
  _ = experiment.traced_step
  return experiment


def _warn_of_image_size(experiment: experiment_lib.Experiment) -> None:
  """Warns of images in a size for which the model would have other parameters, or cannot be."""
  config, image = experiment.config, experiment.abstract_batch.get('image')
  natural = getattr(experiment.task.model, 'image_size', None)
  if natural is None or 'image_size' not in config.model or image is None or image.ndim != 4:
    return
  size = image.shape[1:3]
  if size != tuple(natural) and _parameter_shapes(config, size) != _parameter_shapes(config):
    logging.warning(
      'images of %d x %d pixels for a model of %d x %d, which resizes them or its positions; set '
      'config.model.image_size or config.dataset.image_size where that is not meant',
      *size,
      *natural,
    )


def _parameter_shapes(
  config: ml_collections.ConfigDict, image_size: tuple[int, int] | None = None
) -> Any:
  """Of a model for images of another size; None where there is none."""
  if image_size is not None:
    config = config.copy_and_resolve_references()
    config.model.image_size = image_size
  try:
    task = tasks.create_task(config)
    variables = jax.eval_shape(lambda: task.init(jax.random.key(0)))
  except ValueError:
    return None
  return jax.tree.map(jnp.shape, variables['params'])
