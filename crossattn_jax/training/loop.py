"""The one loop: trains, evaluates and predicts for every task."""

import collections
from collections.abc import Callable
import contextlib
import signal
import sys
import time
from typing import Any

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import ml_collections
import numpy as np

from crossattn_jax import parallel, tasks
from crossattn_jax.training import checkpoints, errors, inputs, metric_writers, preflight, weights
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import state as state_lib

# Steps that may be under way on the devices while the host reads the metrics of an earlier one.
_STEPS_AHEAD = 2


class Interrupted(SystemExit):
  """The run was asked to stop; its state is saved. Exits with status 0."""


def train(
  config: ml_collections.ConfigDict, workdir: epath.Path, mesh: jax.sharding.Mesh | None = None
) -> dict[str, float]:
  """Trains until the end, from the last checkpoint in the workdir if there is one.

  Writes into the workdir: `config.json`, `metrics.jsonl`, TensorBoard event files, `checkpoints/`,
  `predictions.png`.

  Args:
    config: of the experiment; see `config.default_config`. What only the data can say is filled in.
    workdir: folder of this run; made if it does not exist.
    mesh: over all devices as the config says by default.

  Returns:
    The metrics of the final evaluation.

  Raises:
    ConfigError: the config cannot be run.
    CheckpointMismatch: the workdir holds a run of another model.
    NonFiniteError: the loss is not finite.
    Interrupted: on SIGTERM, after the state is saved.
  """
  started = time.monotonic()
  experiment = preflight.setup(config, mesh, workdir, say=_say)
  workdir.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(experiment.mesh))
    stop = stack.enter_context(_StopSignal())
    checkpointer = stack.enter_context(contextlib.closing(_checkpointer(experiment, workdir)))
    state, position = _restore_or_init(experiment, checkpointer)
    if jax.process_index() == 0:
      config_lib.save(config, workdir / 'config.json')
    writer = stack.enter_context(contextlib.closing(metric_writers.MetricWriter(workdir)))
    writer.truncate(int(state.step))
    state, metrics = _train(experiment, state, position, workdir, checkpointer, writer, stop)
  # Outside the mesh: with several processes only one of them draws.
  _write_samples(experiment, state.eval_variables, workdir)
  shown = '  '.join(f'{name} {value:.6g}' for name, value in metrics.items())
  _say(
    f'finished {experiment.total_steps} steps in {time.monotonic() - started:.0f} s: {shown}; '
    f'metrics, checkpoints and predictions.png in {workdir}'
  )
  return metrics


def _complete(config: ml_collections.ConfigDict) -> None:
  """Fills in what only the data can say, and says what was chosen."""
  for note in config_lib.complete_start(config) + tasks.complete_config(config):
    _say(note)


def evaluate(config: ml_collections.ConfigDict, workdir: epath.Path) -> dict[str, float]:
  """Evaluates `config.weights`, or else the checkpoint that `config.checkpoint.use` names.

  Args:
    config: of the experiment.
    workdir: of the run.

  Returns:
    The task's metrics.
  """
  config_lib.validate(config)
  for note in weights.complete_config(config, workdir, classes=True):
    _say(note)
  _complete(config)
  # The training data is not needed to count steps.
  experiment = experiment_lib.setup(
    config, steps_per_epoch=experiment_lib.any_steps_per_epoch(config)
  )
  with jax.set_mesh(experiment.mesh):
    return run_evaluation(experiment, load_variables(experiment, workdir))


def predict(
  config: ml_collections.ConfigDict,
  workdir: epath.Path | None,
  inputs: epath.Path,
  output: epath.Path,
  *,
  pictures: str | None = None,
  on_record: Callable[[dict[str, Any]], None] = lambda record: None,
) -> list[dict[str, Any]]:
  """Predicts for a file or for every file below a folder.

  Args:
    config: of the experiment.
    workdir: of the run; None where `config.weights` says what to predict with.
    inputs: a file or a folder, or what else the task takes.
    output: folder for results and pictures; made if it does not exist.
    pictures: one of `tasks.PICTURES`; by default one of each of a few files, else a sheet.
    on_record: is called with each record as soon as it is there.

  Returns:
    Records, mostly one per file; see `tasks.Predictor.write_predictions`.

  Raises:
    FileNotFoundError: there is no input.
    ValueError: no input can be read, or the config says how in a way that cannot be.
  """
  for note in weights.complete_config(config, workdir, classes=True):
    _say(note)
  # No data set is needed to count steps.
  experiment = experiment_lib.setup(
    config, _mesh_here(config), steps_per_epoch=experiment_lib.any_steps_per_epoch(config)
  )
  task = experiment.task
  # What is wrong shows before weights are loaded.
  task.Examples.check(config.dataset)
  task.Predictor.find_inputs(inputs, output)
  with jax.set_mesh(experiment.mesh):
    variables = load_variables(experiment, workdir)
    return task.Predictor(task, variables).write_predictions(inputs, output, pictures, on_record)


def _mesh_here(config: ml_collections.ConfigDict) -> jax.sharding.Mesh:
  """The mesh of the config; one device where it is for another machine, as that of the training."""
  try:
    return parallel.create_mesh(**config.mesh)
  except ValueError as error:
    logging.info('predicting on one device: %s', error)
    return parallel.create_mesh(devices=jax.devices()[:1])


def run_evaluation(experiment: experiment_lib.Experiment, variables: Any) -> dict[str, float]:
  """One pass over the evaluation split, under the ambient mesh.

  Every example counts exactly once at any number of devices; sums are added in double precision.

  Args:
    experiment: which task, which data.
    variables: of the model.

  Returns:
    The task's metrics.

  Raises:
    ValueError: no example can be read.
  """
  block, num_blocks = parallel.process_block(experiment.mesh)
  batch_size = experiment_lib.eval_batch_size(experiment.config)
  iterator = iter(experiment.task.eval_data(batch_size, block, num_blocks))
  total, examples, count = None, [], 0
  with contextlib.closing(iterator):
    for loaded in inputs.device_batches(iterator, experiment.mesh):
      evaluation, mask = jax.device_get(experiment.eval_step(variables, loaded.arrays))
      count += np.count_nonzero(mask)
      sums = jax.tree.map(_exact, evaluation.sums)
      total = sums if total is None else jax.tree.map(np.add, total, sums)
      if evaluation.examples is not None:
        rows = jax.tree.map(lambda rows, kept=mask: rows[kept], evaluation.examples)
        examples.append(experiment.task.reduce_examples(rows))
  if not count:
    dataset = experiment.config.dataset
    raise ValueError(
      f'there is nothing to evaluate on: no example of dataset {dataset.name!r}, split '
      f'{dataset.eval_split!r}, can be read'
    )
  joined = jax.tree.map(lambda *rows: np.concatenate(rows), *examples) if examples else None
  joined = experiment.task.evaluate_examples(variables, joined)
  return experiment.task.metrics(tasks.Evaluation(total, joined))


def _exact(value: np.ndarray) -> np.ndarray:
  value = np.asarray(value)
  return value.astype(np.int64 if value.dtype.kind in 'iub' else np.float64)


def load_variables(experiment: experiment_lib.Experiment, workdir: epath.Path | None) -> Any:
  """Variables to evaluate: of `config.weights`, or else of the workdir's checkpoint.

  Args:
    experiment: which model.
    workdir: of a run.

  Returns:
    Variables on the devices of the experiment's mesh.

  Raises:
    ConfigError: neither is given.
    FileNotFoundError: there is no such checkpoint.
  """
  config = experiment.config
  if config.weights is not None:
    return weights.load(experiment, config.weights, _say)
  if workdir is None:
    raise config_lib.ConfigError('give --workdir, or --config.weights=FILE')
  with contextlib.closing(_checkpointer(experiment, workdir)) as checkpointer:
    return weights.restore(experiment, checkpointer, config.checkpoint.use)


def _checkpointer(
  experiment: experiment_lib.Experiment, workdir: epath.Path
) -> checkpoints.Checkpointer:
  section = experiment.config.checkpoint
  best_metric, best_mode = experiment.best_metric
  return checkpoints.Checkpointer(
    workdir / 'checkpoints',
    keep_last=section.keep_last,
    keep_best=section.keep_best,
    best_metric=best_metric,
    best_mode=best_mode,
  )


def _restore_or_init(
  experiment: experiment_lib.Experiment, checkpointer: checkpoints.Checkpointer
) -> tuple[state_lib.TrainState, Any]:
  """The state to go on from, and the position of the data: None at the beginning."""
  frozen = weights.load_frozen(experiment)
  fingerprints = _fingerprints(frozen)
  sharding = parallel.replicated(experiment.mesh)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), fingerprints
  )
  restored = checkpointer.restore(
    experiment.abstract_state.replace(frozen=abstract), config=experiment.config
  )
  if restored is not None:
    for name, model in experiment.task.frozen_models.items():
      if int(restored.state.frozen[name]) != int(fingerprints[name]):
        raise checkpoints.CheckpointMismatch(
          f'{model.config_key}={model.weights!r} holds other weights than those with which this '
          f'run was trained until step {restored.step}; put those back, or use another workdir'
        )
    _say(f'continuing after step {restored.step} of {experiment.total_steps}')
    return restored.state.replace(frozen=frozen), restored.iterator_state
  state = experiment.init_state().replace(frozen=frozen)
  if experiment.config.weights is not None:
    state = weights.start_from(experiment, state, experiment.config.weights, _say)
  return state, None


def _fingerprints(frozen: dict[str, Any]) -> dict[str, jax.Array]:
  """What a checkpoint holds in the place of frozen variables."""
  return {name: checkpoints.fingerprint(variables) for name, variables in frozen.items()}


def _train(
  experiment: experiment_lib.Experiment,
  state: state_lib.TrainState,
  position: Any,
  workdir: epath.Path,
  checkpointer: checkpoints.Checkpointer,
  writer: metric_writers.MetricWriter,
  stop: '_StopSignal',
) -> tuple[state_lib.TrainState, dict[str, float]]:
  """Takes the steps that are left."""
  config, total = experiment.config, experiment.total_steps
  block, num_blocks = parallel.process_block(experiment.mesh)
  iterator = iter(experiment.task.train_data(config.batch_size, block, num_blocks))
  start = step = int(state.step)
  if position is not None:
    iterator.set_state(position)
  else:
    # At the beginning nothing; else another number of processes wrote the checkpoint.
    for _ in range(start):
      next(iterator)
  evaluate_at = _every(config.evaluation, experiment)
  save_at = _every(config.checkpoint, experiment)
  profiler = _Profiler(config.profile.steps, workdir)
  metrics: dict[str, float] = {}

  with (
    contextlib.closing(iterator),
    metric_writers.ProgressLine(total, batch_size=config.batch_size, start_step=start) as progress,
  ):
    watch = _Watch(experiment, writer, progress, checkpointer)
    batches = inputs.device_batches(iterator, experiment.mesh)
    for step in range(start + 1, total + 1):
      loaded = next(batches)
      profiler.before(step)
      state, step_metrics = experiment.train_step(state, loaded.arrays)
      profiler.after(step, step_metrics)
      watch.add(step, step_metrics, loaded.skipped)

      evaluated = step == total or evaluate_at(step)
      stopping = stop.requested(step)
      if evaluated:
        watch.drain()
        metrics = run_evaluation(experiment, state.eval_variables)
        writer.write(step, {f'eval/{name}': value for name, value in metrics.items()})
        watch.show(metrics)
      if evaluated or save_at(step) or stopping:
        watch.drain()
        checkpointer.save(
          step,
          state.replace(frozen=_fingerprints(state.frozen)),
          loaded.position,
          metrics if evaluated else None,
          config,
        )
      if stopping and step < total:
        checkpointer.wait()
        _say(f'stopped after step {step} of {total}: the same command continues')
        raise Interrupted(0)
  checkpointer.wait()
  return state, metrics or run_evaluation(experiment, state.eval_variables)


def _every(
  section: ml_collections.ConfigDict, experiment: experiment_lib.Experiment
) -> Callable[[int], bool]:
  """When `every_steps` or `every_epochs` of a section is due."""
  interval = section.every_steps
  if interval is None and section.every_epochs is not None:
    interval = max(1, round(section.every_epochs * experiment.steps_per_epoch))
  return lambda step: bool(interval) and step % interval == 0


def _say(message: str) -> None:
  """Tells the person at the terminal, once for all processes."""
  if jax.process_index() == 0:
    print(message, file=sys.stderr, flush=True)


class _Watch:
  """Reads the metrics of each step on the host, a few steps late so that devices never wait."""

  def __init__(
    self,
    experiment: experiment_lib.Experiment,
    writer: metric_writers.MetricWriter,
    progress: metric_writers.ProgressLine,
    checkpointer: checkpoints.Checkpointer,
  ):
    self._config = experiment.config
    self._best_metric, _ = experiment.best_metric
    self._writer = writer
    self._progress = progress
    self._checkpointer = checkpointer
    self._pending: collections.deque[tuple[int, Any]] = collections.deque()
    self._skipped = 0
    self._evaluated: dict[str, float] = {}

  def show(self, metrics: dict[str, float]) -> None:
    """Shows the evaluation's deciding metric from now on."""
    name = self._best_metric
    # A metric of a class that the split does not have is not there.
    self._evaluated = {f'eval {name}': metrics[name]} if name in metrics else {}

  def add(self, step: int, metrics: Any, skipped: int) -> None:
    """Takes the metrics of a step that may still be under way."""
    self._skipped += skipped
    self._pending.append((step, metrics))
    while len(self._pending) > _STEPS_AHEAD:
      self._read()

  def drain(self) -> None:
    """Waits for all steps."""
    while self._pending:
      self._read()

  def _read(self) -> None:
    step, metrics = self._pending.popleft()
    metrics = {name: value.item() for name, value in jax.device_get(metrics).items()}
    bad_steps = metrics.pop('bad_steps')
    if bad_steps:
      self._report_bad_step(step, bad_steps, metrics)
    shown = {name: metrics[name] for name in ('loss', 'accuracy') if name in metrics}
    self._progress.update(step, shown | self._evaluated)
    if step % self._config.logging.every_steps == 0:
      if self._skipped:
        metrics['skipped_examples'] = self._skipped
      self._writer.write(step, {f'train/{name}': value for name, value in metrics.items()})

  def _report_bad_step(self, step: int, bad_steps: int, metrics: dict[str, float]) -> None:
    names = [name for name, value in metrics.items() if not np.isfinite(value)]
    what = ', '.join(f'{name} = {metrics[name]}' for name in names)
    if bad_steps < self._config.max_bad_steps:
      logging.warning('step %d changed nothing: %s', step, what)
      return
    self._writer.write(step, {f'train/{name}': value for name, value in metrics.items()})
    kept = self._checkpointer.latest_step()
    raise errors.NonFiniteError(
      f'{what} at step {step}: {bad_steps} bad steps in a row, since step {step - bad_steps + 1}. '
      'No bad step changed the parameters; '
      + (f'the last checkpoint is of step {kept}. ' if kept else 'there is no checkpoint yet. ')
      + 'Lower config.schedule.learning_rate, set config.optimizer.clip_norm, or raise '
      'config.max_bad_steps'
    )


class _StopSignal:
  """Turns SIGTERM, which clusters send before they take a machine away, into a clean stop."""

  def __enter__(self) -> '_StopSignal':
    self._received = False
    if jax.process_count() == 1:
      self._previous = signal.signal(signal.SIGTERM, self._handle)
    return self

  def __exit__(self, *_: object) -> None:
    if jax.process_count() == 1:
      signal.signal(signal.SIGTERM, self._previous)

  def _handle(self, *_: object) -> None:
    self._received = True

  def requested(self, step: int) -> bool:
    """Whether to stop after this step; all processes agree on the step."""
    if jax.process_count() == 1:
      return self._received
    return multihost_utils.reached_preemption_sync_point(step)


class _Profiler:
  """Traces the steps from the first to the last that the config names."""

  def __init__(self, steps: tuple[int, ...], workdir: epath.Path):
    self._first, self._last = steps or (None, None)
    self._folder = workdir / 'profile'
    self._tracing = False

  def before(self, step: int) -> None:
    """Starts the trace where it is due."""
    if step == self._first:
      jax.profiler.start_trace(str(self._folder))
      self._tracing = True

  def after(self, step: int, metrics: Any) -> None:
    """Ends the trace when the last step has been computed."""
    if self._tracing and step == self._last:
      jax.block_until_ready(metrics)
      jax.profiler.stop_trace()
      self._tracing = False
      logging.info('profile of steps %d to %d in %s', self._first, self._last, self._folder)


def _write_samples(
  experiment: experiment_lib.Experiment, variables: Any, workdir: epath.Path
) -> None:
  """Draws predictions on process 0, which for this needs all parameters."""
  if jax.process_count() > 1:
    variables = multihost_utils.process_allgather(variables, tiled=True)
  if jax.process_index() == 0:
    task = experiment.task
    task.Predictor(task, variables).write_samples(workdir / 'predictions.png')
