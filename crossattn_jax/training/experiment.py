"""From a config to everything that a run needs, before any array exists."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh
import ml_collections
import optax

from crossattn_jax import parallel, tasks
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import optimizers, schedules, state, steps


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The parts of a run.

  Attributes:
    config: of the experiment.
    task: what is learnt.
    mesh: of the devices.
    steps_per_epoch: training steps in an epoch.
    total_steps: training steps in the run.
    schedule: step -> learning rate.
    optimizer: updates parameters.
    abstract_state: shapes, dtypes and shardings of the state.
  """

  config: ml_collections.ConfigDict
  task: tasks.Task
  mesh: Mesh
  steps_per_epoch: int
  total_steps: int
  schedule: optax.Schedule
  optimizer: optax.GradientTransformation
  abstract_state: state.TrainState

  @property
  def state_shardings(self) -> state.TrainState:
    """Shardings of the state."""
    return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

  @functools.cached_property
  def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a global training batch."""
    sharding = parallel.batch_sharding(self.mesh)
    return jax.tree.map(
      lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding),
      self.task.batch_spec(self.config.batch_size),
    )

  def init_state(self) -> state.TrainState:
    """The initial state, built on its devices."""
    build = jax.jit(
      functools.partial(
        state.init_state, task=self.task, optimizer=self.optimizer, config=self.config
      ),
      out_shardings=self.state_shardings,
    )
    with jax.set_mesh(self.mesh):
      return build(jax.random.key(self.config.seed))

  @property
  def best_metric(self) -> tuple[str, str]:
    """The metric that decides which checkpoint is best, and whether its 'max' or 'min' is."""
    return best_metric(self.task)

  @functools.cached_property
  def train_step(self) -> steps.TrainStep:
    """The jitted step `(state, batch) -> (state, metrics)`; the state given is consumed."""
    return jax.jit(
      steps.make_train_step(self.task, self.optimizer, self.schedule, self.config),
      in_shardings=(self.state_shardings, parallel.batch_sharding(self.mesh)),
      out_shardings=(self.state_shardings, parallel.replicated(self.mesh)),
      donate_argnums=0,
    )

  @functools.cached_property
  def traced_step(self) -> jax.stages.Traced:
    """`train_step`, traced for the state and batches of the run: what can be compiled."""
    with jax.set_mesh(self.mesh):
      return self.train_step.trace(self.abstract_state, self.abstract_batch)

  @functools.cached_property
  def compiled_step(self) -> jax.stages.Compiled:
    """`train_step` as a program for the devices of the mesh."""
    with jax.set_mesh(self.mesh):
      return self.traced_step.lower().compile()

  def step(self, state: state.TrainState, batch: tasks.Batch) -> tuple[state.TrainState, Any]:
    """Takes a training step, under the ambient mesh; the state given is consumed.

    Batches of another shape than `abstract_batch`, such as images higher than wide, have a program
    of their own, which is compiled when the first one comes.
    """
    usual = all(batch[name].shape == spec.shape for name, spec in self.abstract_batch.items())
    return (self.compiled_step if usual else self.train_step)(state, batch)

  @functools.cached_property
  def eval_step(self) -> Callable[[Any, tasks.Batch], tuple[tasks.Evaluation, jax.Array]]:
    """The jitted step `(variables, batch) -> (Evaluation, mask)`, which every device then holds."""
    return jax.jit(
      lambda variables, batch: (self.task.evaluate(variables, batch), batch['mask']),
      out_shardings=parallel.replicated(self.mesh),
    )


def best_metric(task: tasks.Task) -> tuple[str, str]:
  """The metric that decides which checkpoint is best, and whether its 'max' or 'min' is."""
  section, modes = task.config.checkpoint, task.metric_modes
  name = next(iter(modes)) if section.best_metric is None else section.best_metric
  return name, section.best_mode or modes.get(name, 'max')


def any_steps_per_epoch(config: ml_collections.ConfigDict) -> int:
  """Steps per epoch for `setup` where no data is read: every warm-up that fits a run fits in."""
  return 10**6 if config.num_steps is None else 1


def setup(
  config: ml_collections.ConfigDict, mesh: Mesh | None = None, steps_per_epoch: int | None = None
) -> Experiment:
  """Builds an experiment from its config.

  Args:
    config: of the experiment; validated here.
    mesh: over all devices as the config says by default.
    steps_per_epoch: counted in the data set by default; without one see `any_steps_per_epoch`.

  Returns:
    The experiment. No array has been made.

  Raises:
    ConfigError: the config cannot be run.
  """
  config_lib.validate(config)
  config_lib.complete_start(config)
  config_lib.complete_images(config)
  mesh = parallel.create_mesh(**config.mesh) if mesh is None else mesh
  check_batch_sizes(config, mesh)
  task = tasks.create_task(config)
  if steps_per_epoch is None:
    steps_per_epoch = task.steps_per_epoch(config.batch_size)
  return assemble(task, mesh, steps_per_epoch, create_schedule(config, steps_per_epoch))


def check_batch_sizes(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
  """Refuses batches that the devices of the mesh cannot share evenly.

  Raises:
    ConfigError: the message names the key.
  """
  shards = mesh.shape['data'] * mesh.shape['fsdp']
  for key, size, parts in (
    ('batch_size', config.batch_size // config.accumulation_steps, config.accumulation_steps),
    ('evaluation.batch_size', eval_batch_size(config), 1),
  ):
    if size % shards:
      raise config_lib.ConfigError(
        f'config.{key}: {size} examples at a time do not split over data * fsdp = {shards} devices',
        {key: max(size // shards, 1) * shards * parts},
      )


def count_steps(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
  """Training steps of a run.

  Raises:
    ConfigError: there is not one.
  """
  if config.num_steps is not None:
    return config.num_steps
  steps = round(config.num_epochs * steps_per_epoch)
  if not steps:
    raise config_lib.ConfigError(
      f'config.num_epochs={config.num_epochs} of {steps_per_epoch} steps is less than a step; '
      'train for longer, or set config.num_steps'
    )
  return steps


def create_schedule(config: ml_collections.ConfigDict, steps_per_epoch: int) -> schedules.Schedule:
  """The learning rate by step.

  Raises:
    ValueError: as `schedules.create_schedule`.
    ConfigError: the run ends before its warm-up.
  """
  total_steps = count_steps(config, steps_per_epoch)
  schedule = schedules.create_schedule(
    config.schedule,
    base_lr=schedules.scaled_learning_rate(config.schedule, config.batch_size),
    total_steps=total_steps,
    steps_per_epoch=steps_per_epoch,
  )
  if 0 <= schedule.warmup_steps < total_steps:
    return schedule
  changes = {'schedule.warmup_steps': total_steps // 10}
  if not config.schedule.warmup_steps:
    tenth = float(f'{total_steps / 10 / steps_per_epoch:.2g}')
    changes = {'schedule.warmup_epochs': tenth}
  if config.schedule.warmup_min_steps:
    changes['schedule.warmup_min_steps'] = 0
  shown = ' '.join(f'config.{key}={value}' for key, value in changes.items())
  raise config_lib.ConfigError(
    f'the warm-up takes {schedule.warmup_steps} steps but the run has {total_steps}; '
    f'shorten schedule.warmup_epochs or schedule.warmup_steps, as by {shown}',
    changes,
  )


def assemble(
  task: tasks.Task, mesh: Mesh, steps_per_epoch: int, schedule: optax.Schedule
) -> Experiment:
  """Builds an experiment of parts that fit its config, which is the task's.

  Raises:
    ValueError: a pattern of the config matches no parameter, or the model refuses its inputs.
  """
  config = task.config
  jax.config.update('jax_default_matmul_precision', config.matmul_precision)
  with jax.set_mesh(mesh):
    # Keys are made while tracing: the devices of the mesh need not be here.
    variables = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    optimizer = optimizers.create_optimizer(
      config.optimizer, schedule, variables['params'], config.freeze, config.batch_size
    )
    abstract = jax.eval_shape(lambda: state.init_state(jax.random.key(0), task, optimizer, config))
  if config.freeze and config.model.get('scan_blocks') and 'batch_stats' in variables:
    raise config_lib.ConfigError(
      'config.freeze does not reach the batch norms of blocks that are a loop',
      {'model.scan_blocks': False},
    )
  shardings = state.state_shardings(abstract, mesh, config)
  return Experiment(
    config=config,
    task=task,
    mesh=mesh,
    steps_per_epoch=steps_per_epoch,
    total_steps=count_steps(config, steps_per_epoch),
    schedule=schedule,
    optimizer=optimizer,
    abstract_state=jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      abstract,
      shardings,
    ),
  )


def eval_batch_size(config: ml_collections.ConfigDict) -> int:
  """Global batch size of the evaluation."""
  return config.evaluation.batch_size or config.batch_size
