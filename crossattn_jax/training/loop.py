"""The one loop: trains, evaluates and predicts for every task."""

import collections
from collections.abc import Callable
import contextlib
import dataclasses
import functools
import itertools
import time
from typing import Any

from absl import logging
from etils import epath
import jax
import ml_collections
import numpy as np

from crossattn_jax import long_work, parallel, tasks
from crossattn_jax.training import (
  agreement,
  checkpoints,
  device_memory,
  errors,
  fingerprints,
  inputs,
  messages,
  metric_writers,
  pictures,
  preflight,
  stopping,
  weights,
  weights_and_biases,
)
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import state as state_lib
from crossattn_jax.training import workdir as workdir_lib

# Steps that may be under way on the devices while the host reads the metrics of an earlier one.
_STEPS_AHEAD = 2


def train(
  config: ml_collections.ConfigDict, workdir: epath.Path, mesh: jax.sharding.Mesh | None = None
) -> dict[str, float]:
  """Trains until the end, from the last checkpoint in the workdir if there is one.

  Writes into the workdir: `config.json`, `metrics.jsonl`, TensorBoard event files, `checkpoints/`,
  and what `pictures` draws.

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
    WorkdirInUse: another run writes into the workdir.
    StorageError: the workdir cannot be written.
    OutOfMemoryError: the run does not fit into the memory that is free.
    Interrupted: on SIGTERM or Ctrl-C, after the state is saved.
  """
  started = time.monotonic()
  with contextlib.ExitStack() as stack:
    stop = stack.enter_context(stopping.StopSignal())
    agreement.check(config)
    experiment = preflight.setup(config, mesh, workdir)
    stack.enter_context(workdir_lib.storage_errors(workdir))
    workdir.mkdir(parents=True, exist_ok=True)
    stack.enter_context(workdir_lib.lock(workdir))
    advice = functools.partial(device_memory.training_advice, experiment)
    stack.enter_context(device_memory.explained(advice))
    checkpointer = stack.enter_context(contextlib.closing(_checkpointer(experiment, workdir)))
    with jax.set_mesh(experiment.mesh):
      with long_work.said('preparing parameters and optimizer'):
        state = _restore_or_init(experiment, checkpointer)
      if jax.process_index() == 0:
        config_lib.save(config, workdir / 'config.json')
      writer = stack.enter_context(contextlib.closing(_metric_writer(experiment, workdir)))
      writer.truncate(int(state.step))
      run, begun = _Run(experiment, workdir, checkpointer, writer, stop), int(state.step)
      state, metrics = run.train(state)
    done = int(state.step)
    if config.logging.pictures:
      # Outside the mesh: with several processes only one of them draws.
      drawn = pictures.write(experiment.task, state.eval_variables, run.review, workdir)
      for path in drawn if run.review else ():
        writer.write_picture(done, path)
      pictures.write_curves(experiment.task, experiment.steps_per_epoch, workdir)
    _show_uses(experiment, checkpointer, workdir)
  # Below a table nobody reads a line of all classes, 'iou/sky' and so on; metrics.jsonl has them.
  tabled = bool(experiment.task.summary(metrics))
  shown = '  '.join(f'{k} {x:.6g}' for k, x in metrics.items() if not (tabled and '/' in k))
  what = f'nothing left to train after step {done}'
  if done > begun:
    last = f', the last {done - begun}' if begun else ''
    what = f'finished {done} steps{last} in {time.monotonic() - started:.0f} s'
  messages.say(f'{what}: {shown}; see {workdir}')
  return metrics


def _metric_writer(
  experiment: experiment_lib.Experiment, workdir: epath.Path
) -> metric_writers.MetricWriter:
  config, tracker = experiment.config, None
  if config.logging.wandb:
    tracker = functools.partial(weights_and_biases.Tracker, config.logging.wandb, workdir, config)
  return metric_writers.MetricWriter(workdir, experiment.task.explain, tracker)


def _show_uses(
  experiment: experiment_lib.Experiment,
  checkpointer: checkpoints.Checkpointer,
  workdir: epath.Path,
) -> None:
  """Says which checkpoint is best, and the commands that use what was learnt."""
  best, use = checkpointer.best_step(), ()
  if best is not None:
    name = checkpointer.best_metric
    messages.say(f'best {name}: {checkpointer.metrics(best)[name]:.6g}, after step {best}')
    use = ('--use=best',)
  folder = ('--output=FOLDER',)
  modes = {'eval': (), 'predict': ('--input=FILE_OR_FOLDER', *folder), 'export': ()}
  if experiment.task.Labels is not None:
    modes['label'] = folder
  for mode, flags in modes.items():
    messages.say('  ' + messages.command_for(mode, workdir, *use, *flags))


def evaluate(
  config: ml_collections.ConfigDict,
  workdir: epath.Path | None,
  output: epath.Path | None = None,
) -> dict[str, float]:
  """Evaluates `config.weights`, or else the checkpoint that `config.checkpoint.use` names.

  Args:
    config: of the experiment.
    workdir: of the run; None where `config.weights` says what to evaluate.
    output: folder of what `pictures` draws, made if it does not exist; None: nothing does.

  Returns:
    The task's metrics.
  """
  config_lib.validate(config)
  agreement.check(config)
  messages.say(*weights.complete_config(config, workdir, classes=True))
  with long_work.said(f'opening data set {config.dataset.name!r}'):
    messages.say(*tasks.complete_config(config))
  # The training data is not needed to count steps.
  experiment = experiment_lib.setup(
    config, steps_per_epoch=experiment_lib.any_steps_per_epoch(config)
  )
  with jax.set_mesh(experiment.mesh):
    with long_work.said('reading the weights'):
      variables = load_variables(experiment, workdir)
    reviews = []

    def review(evaluation: tasks.Evaluation, examples: Any) -> None:
      if output is not None:
        reviews.append(pictures.review(experiment.task, evaluation, examples))

    with long_work.said(f'evaluating on split {config.dataset.eval_split!r}'):
      metrics = run_evaluation(experiment, variables, review)
  # Outside the mesh: with several processes only one of them draws.
  if reviews and pictures.write(experiment.task, variables, reviews[0], output):
    messages.say(f'pictures in {output}')
  return metrics


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
  experiment = setup_prediction(config, workdir)
  task = experiment.task
  # What is wrong shows before weights are loaded.
  messages.say(*task.Predictor.check(task))
  task.Predictor.find_inputs(inputs, output)
  with jax.set_mesh(experiment.mesh):
    variables = load_variables(experiment, workdir)
    return task.Predictor(task, variables).write_predictions(inputs, output, pictures, on_record)


def setup_prediction(
  config: ml_collections.ConfigDict, workdir: epath.Path | None
) -> experiment_lib.Experiment:
  """What predicting needs besides variables; the config is completed, no data set is opened.

  Raises:
    ValueError: the config says how to predict in a way that cannot be.
  """
  messages.say(*weights.complete_config(config, workdir, classes=True, with_data=False))
  # No data set is needed to count steps.
  experiment = experiment_lib.setup(
    config, _mesh_here(config), steps_per_epoch=experiment_lib.any_steps_per_epoch(config)
  )
  experiment.task.Examples.check(config.dataset)
  return experiment


def _mesh_here(config: ml_collections.ConfigDict) -> jax.sharding.Mesh:
  """The mesh of the config; one device where it is for another machine, as that of the training."""
  try:
    return parallel.create_mesh(**config.mesh)
  except ValueError as error:
    logging.info('predicting on one device: %s', error)
    return parallel.create_mesh(devices=jax.devices()[:1])


def run_evaluation(
  experiment: experiment_lib.Experiment,
  variables: Any,
  on_result: Callable[[tasks.Evaluation, Any], None] = lambda evaluation, examples: None,
) -> dict[str, float]:
  """One pass over the evaluation split, under the ambient mesh.

  Every example counts exactly once at any number of devices; sums are added in double precision.

  Args:
    experiment: which task, which data.
    variables: of the model.
    on_result: is called with what `Task.review` takes.

  Returns:
    The task's metrics.

  Raises:
    ValueError: no example can be read.
  """
  block, num_blocks = parallel.process_block(experiment.mesh)
  batch_size = experiment_lib.eval_batch_size(experiment.config)
  iterator = iter(experiment.task.eval_data(batch_size, block, num_blocks))
  total, examples, count = None, [], 0
  advice = functools.partial(device_memory.evaluation_advice, experiment)
  with contextlib.closing(iterator), device_memory.explained(advice):
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
  evaluation = tasks.Evaluation(total, experiment.task.evaluate_examples(variables, joined))
  metrics = experiment.task.metrics(evaluation)
  messages.say(*experiment.task.summary(metrics))
  on_result(evaluation, joined)
  return metrics


def _exact(value: np.ndarray) -> np.ndarray:
  value = np.asarray(value)
  return value.astype(np.int64 if value.dtype.kind in 'iub' else np.float64)


def load_variables(experiment: experiment_lib.Experiment, workdir: epath.Path | None) -> Any:
  """Variables to evaluate: of `config.weights`, or else of the workdir's checkpoint.

  Args:
    experiment: which model.
    workdir: of a run; None where `config.weights` is given.

  Returns:
    Variables on the devices of the experiment's mesh.

  Raises:
    ConfigError: neither is given.
    FileNotFoundError: there is no such checkpoint.

  Examples:
    >>> workdir = epath.Path('run')
    >>> experiment = setup_prediction(config_lib.load(workdir / 'config.json'), workdir)
    >>> variables = load_variables(experiment, workdir)
    >>> dataset = experiment.config.dataset
    >>> images = np.zeros((2, *dataset.image_size, 1))  # grey levels, 0 to 1
    >>> images = (images - dataset.mean) / dataset.std
    >>> logits, features = experiment.task.model.apply(variables, images)
    >>> [experiment.task.class_names[label] for label in logits.argmax(-1)]
    ['...', '...']
  """
  config = experiment.config
  if config.weights is not None:
    return weights.load(experiment, config.weights)
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
) -> state_lib.TrainState:
  """The state to go on from."""
  frozen = weights.load_frozen(experiment)
  expected = _fingerprints(frozen)
  sharding = parallel.replicated(experiment.mesh)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), expected
  )
  restored = checkpointer.restore(
    experiment.abstract_state.replace(frozen=abstract), config=experiment.config
  )
  if restored is not None:
    for name, model in experiment.task.frozen_models.items():
      if int(restored.state.frozen[name]) != int(expected[name]):
        raise checkpoints.CheckpointMismatch(
          f'{model.config_key}={model.weights!r} holds other weights than those with which this '
          f'run was trained until step {restored.step}; put those back, or use another workdir'
        )
    messages.say(f'continuing after step {restored.step} of {experiment.total_steps}')
    return restored.state.replace(frozen=frozen)
  state = experiment.init_state().replace(frozen=frozen)
  if experiment.config.weights is not None:
    state = weights.start_from(experiment, state, experiment.config.weights)
  return state


def _fingerprints(frozen: dict[str, Any]) -> dict[str, jax.Array]:
  """What a checkpoint holds in the place of frozen variables."""
  return {name: fingerprints.of_tree(variables) for name, variables in frozen.items()}


@dataclasses.dataclass
class _Run:
  """A training under way.

  Attributes:
    experiment: what is trained.
    workdir: of the run.
    checkpointer: of its states.
    writer: of its metrics.
    stop: whether it is to end.
    review: of the last evaluation, where it may be the final one.
  """

  experiment: experiment_lib.Experiment
  workdir: epath.Path
  checkpointer: checkpoints.Checkpointer
  writer: metric_writers.MetricWriter
  stop: stopping.StopSignal
  review: tasks.Review | None = None

  def train(self, state: state_lib.TrainState) -> tuple[state_lib.TrainState, dict[str, float]]:
    """Takes the steps that are left; returns the last state and its metrics."""
    config, total = self.experiment.config, self.experiment.total_steps
    evaluate_at = _every(config.evaluation, self.experiment)
    save_at = _every(config.checkpoint, self.experiment)
    start = int(state.step)
    metrics: dict[str, float] = {}
    if start and (start >= total or evaluate_at(start)):
      # A run may have ended between a checkpoint and its evaluation.
      metrics = self.checkpointer.metrics(start) or self._evaluate(start, state)
    if start >= total or self._exhausted():
      return state, metrics or self._evaluate(start, state)

    with long_work.said('compiling the training step'):
      device_memory.check_step(self.experiment)
    (self.workdir / 'checkpoints').mkdir(exist_ok=True)
    block, num_blocks = parallel.process_block(self.experiment.mesh)
    data = self.experiment.task.train_data(config.batch_size, block, num_blocks, start)
    profiler = _Profiler(config.profile.steps, self.workdir)
    with (
      contextlib.closing(iter(data)) as iterator,
      metric_writers.ProgressLine(
        total, batch_size=config.batch_size, unit=self.experiment.task.unit, start_step=start
      ) as progress,
    ):
      watch = _Watch(self.experiment, self.writer, progress, self.checkpointer)
      batches = inputs.device_batches(iterator, self.experiment.mesh)
      with long_work.said('loading the first batches'):
        batches = itertools.chain([next(batches)], batches)
      for step in range(start + 1, total + 1):
        with progress.waiting():
          loaded = next(batches)
        profiler.before(step)
        state, step_metrics = self.experiment.step(state, loaded.arrays)
        self.stop.unsaved = True
        profiler.after(step, step_metrics)
        watch.add(step, step_metrics, loaded.skipped)
        self.checkpointer.check()

        evaluated = step == total or evaluate_at(step)
        stopped = self.stop.requested(step)
        if evaluated or save_at(step) or stopped:
          watch.drain()
          self._save(step, state)
        if stopped:
          self._stop(step)
        if evaluated:
          metrics = self._evaluate(step, state)
          watch.show(metrics)
          if step < total and self._exhausted():
            break
    return state, metrics

  def _save(self, step: int, state: state_lib.TrainState) -> None:
    workdir_lib.check(self.workdir)
    state = state.replace(frozen=_fingerprints(state.frozen))
    self.checkpointer.save(step, state, self.experiment.config)

  def _evaluate(self, step: int, state: state_lib.TrainState) -> dict[str, float]:
    """Evaluates a state that is saved: whatever happens here, no training is lost."""
    try:
      metrics = run_evaluation(
        self.experiment, state.eval_variables, functools.partial(self._review, step)
      )
      self.writer.write(step, {f'eval/{name}': value for name, value in metrics.items()})
      self.checkpointer.add_metrics(step, metrics)
      self.stop.unsaved = False
    except Exception as error:
      self.checkpointer.wait()
      error.add_note(
        f'The training is not lost: the checkpoint of step {step} is saved. Once this is mended, '
        f'the same command goes on after it:\n  {messages.this_command()}\n'
        f'and this evaluates it alone:\n  {messages.command_for("eval", self.workdir)}'
      )
      raise
    return metrics

  def _review(self, step: int, evaluation: tasks.Evaluation, examples: Any) -> None:
    config = self.experiment.config
    may_end = step >= self.experiment.total_steps or config.checkpoint.patience is not None
    if config.logging.pictures and may_end:
      self.review = pictures.review(self.experiment.task, evaluation, examples)

  def _stop(self, step: int) -> None:
    messages.say(f'saving step {step}')
    self.checkpointer.wait()
    messages.say(
      f'stopped after step {step} of {self.experiment.total_steps}: the same command continues:\n'
      f'  {messages.this_command()}'
    )
    raise stopping.Interrupted(0)

  def _exhausted(self) -> bool:
    patience = self.experiment.config.checkpoint.patience
    name, mode = self.experiment.best_metric
    if patience is None or stopping.without_improvement(self.workdir, name, mode) < patience:
      return False
    messages.say(
      f'ending early: {name} has not improved for {patience} evaluations '
      '(config.checkpoint.patience)'
    )
    return True


def _every(
  section: ml_collections.ConfigDict, experiment: experiment_lib.Experiment
) -> Callable[[int], bool]:
  """When `every_steps` or `every_epochs` of a section is due."""
  interval = section.every_steps
  if interval is None and section.every_epochs is not None:
    interval = max(1, round(section.every_epochs * experiment.steps_per_epoch))
  return lambda step: bool(interval) and step % interval == 0


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
