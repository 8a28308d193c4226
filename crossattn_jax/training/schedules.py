"""Learning-rate schedules: cosine, polynomial, step and constant, each with linear warm-up.

A schedule is an `optax.Schedule`: it maps the 0-based index of a training step to the learning rate
of that step. Time is counted in integers up to the last division, so that step 400000 of a run with
1251 steps per epoch is in exactly the right epoch in float32 too.
"""

from collections.abc import Callable
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_dict
import numpy as np
import optax

from crossattn_jax import config_errors

SCHEDULES = ('cosine', 'polynomial', 'step', 'constant')
WARMUPS = ('to_base', 'of_schedule', 'to_schedule')


def default_config() -> ml_collections.ConfigDict:
  """Returns every key of `config.schedule` with its default.

  Keys:
    name: 'cosine', 'polynomial', 'step' or 'constant'.
    learning_rate: the base learning rate, for a global batch of `reference_batch_size`.
    reference_batch_size: batch size that `learning_rate` is stated for; the rate in use is
      proportional to the global batch. None: `learning_rate` holds for any batch.
    minimum: learning rate that cosine and polynomial end at. Not scaled with the batch.
    power: exponent of the polynomial.
    restart_epochs: after how many epochs cosine and polynomial begin anew at the base rate (SGDR,
      Loshchilov & Hutter 2017, arXiv 1608.03983); 0: never, they end with the run.
    restart_growth: how many times as long each such period is as the one before, at least 1.
    boundary_epochs: when the step schedule multiplies by `factor`; fractions are rounded to steps.
    factor: of the step schedule.
    warmup_epochs, warmup_steps: length of the linear warm-up; at most one of the two is set.
    warmup_min_steps: the warm-up is at least this long.
    warmup_start: learning rate of the first step. Not scaled with the batch.
    warmup: 'to_base' rises from `warmup_start` to the base rate, then the decay takes over (timm);
      'of_schedule' multiplies the decaying rate by a factor that rises from
      `warmup_start / base` to 1 (mmcv); 'to_schedule' rises from `warmup_start` to what the decay
      has in that step (YOLOv5).
    decay_after_warmup: whether the decay's clock starts at the end of the warm-up; if not, it runs
      from step 0 and the rate drops a little where the warm-up ends (timm, mmcv).
    per_epoch: whether the rate is constant within an epoch, at the value of its first step; of the
      warm-up 'to_schedule' only the decay is.
    epochs_late, steps_late: how late the schedule runs: step n gets the rate of step
      `max(n - steps_late - epochs_late * steps_per_epoch, 0)`. Training scripts that step their
      scheduler with the finished epoch's index are one epoch late: epochs 0 and 1 both train
      at `warmup_start` (CrossViT, SwiftFormer, BiFormer). A warm-up 'to_schedule' is in time, and
      the decay late after it only: the epoch in which the warm-up ends is repeated (YOLOv5).
    epoch_starts_ahead: whether the decay is an epoch ahead in the first step of every epoch but the
      run's first. Scripts that set their scheduler after each step and advance it once more after
      each epoch are, and one step late (MIT).
  """
  config = ml_collections.ConfigDict()
  config.name = 'cosine'
  config.learning_rate = config_dict.FieldReference(1e-3)
  config.reference_batch_size = config_dict.placeholder(int)
  config.minimum = 0.0
  config.power = 1.0
  config.restart_epochs = 0.0
  config.restart_growth = 1.0
  config.boundary_epochs = ()
  config.factor = 0.1
  config.warmup_epochs = 0.0
  config.warmup_steps = 0
  config.warmup_min_steps = 0
  config.warmup_start = 0.0
  config.warmup = 'to_base'
  config.decay_after_warmup = True
  config.per_epoch = False
  config.epochs_late = 0
  config.steps_late = 0
  config.epoch_starts_ahead = False
  return config


@dataclasses.dataclass(frozen=True)
class Schedule:
  """An `optax.Schedule`, from the index of a step to its learning rate, that knows its warm-up.

  Attributes:
    rate: from the step and the rate of the first step to the learning rate.
    warmup_start: rate of the first step.
    warmup_steps: length of the warm-up.
  """

  rate: Callable[[jax.typing.ArrayLike, float], jax.Array]
  warmup_start: float = 0.0
  warmup_steps: int = 0

  def __call__(self, step: jax.typing.ArrayLike, warmup_start: float | None = None) -> jax.Array:
    """The learning rate, of parameters that start at another rate if one is given."""
    return self.rate(step, self.warmup_start if warmup_start is None else warmup_start)


def scaled_learning_rate(config: ml_collections.ConfigDict, batch_size: int) -> float:
  """Returns the base learning rate for a global batch: proportional to it, where so configured."""
  if config.reference_batch_size is None:
    return config.learning_rate
  return config.learning_rate * batch_size / config.reference_batch_size


def create_schedule(
  config: ml_collections.ConfigDict, *, base_lr: float, total_steps: int, steps_per_epoch: int
) -> Schedule:
  """Builds the schedule of a run.

  Args:
    config: as `default_config` documents.
    base_lr: the learning rate at the top, see `scaled_learning_rate`.
    total_steps: of the whole run, warm-up included, which should end before it does.
    steps_per_epoch: what converts `*_epochs` to steps.

  Returns:
    A function from the step (an int or an integer array) to the learning rate in the default float
    dtype: float32, or float64 under `jax.enable_x64`.

  Raises:
    ValueError: for an unknown name or a contradictory or impossible value, naming it.

  Examples:
    >>> config = default_config()
    >>> config.warmup_epochs = 1.0
    >>> rate = create_schedule(config, base_lr=0.1, total_steps=100, steps_per_epoch=10)
    >>> [round(float(rate(step)), 4) for step in (0, 5, 10, 55, 100)]
    [0.0, 0.05, 0.1, 0.05, 0.0]
  """
  check_choice('schedule', config.name, SCHEDULES)
  check_choice('warm-up', config.warmup, WARMUPS)
  if total_steps < 1 or steps_per_epoch < 1:
    raise ValueError(
      f'total_steps={total_steps} and steps_per_epoch={steps_per_epoch} must be positive'
    )
  if config.warmup_epochs and config.warmup_steps:
    raise ValueError(
      f'schedule.warmup_epochs={config.warmup_epochs} and '
      f'schedule.warmup_steps={config.warmup_steps} are both set; leave one of them 0'
    )
  warmup_steps = config.warmup_steps or round(config.warmup_epochs * steps_per_epoch)
  warmup_steps = max(warmup_steps, config.warmup_min_steps)
  if min(config.epochs_late, config.steps_late) < 0:
    raise ValueError('schedule.epochs_late and schedule.steps_late must not be negative')
  steps_late = config.steps_late + config.epochs_late * steps_per_epoch
  decay_start = warmup_steps if config.decay_after_warmup else 0
  decay = _create_decay(config, base_lr, total_steps - decay_start, steps_per_epoch)
  to_schedule = config.warmup == 'to_schedule'

  def rate(step: jax.typing.ArrayLike, warmup_start: float) -> jax.Array:
    # Of the widest integers: 32 of them divide in float32, whatever the default float is.
    step = jnp.asarray(step).astype(jnp.result_type(int))
    is_start = (step > 0) & (step % steps_per_epoch == 0)
    in_time = jnp.minimum(step, warmup_steps) if to_schedule else 0
    step = warming = jnp.maximum(step - steps_late, in_time)
    if config.per_epoch:
      step = step // steps_per_epoch * steps_per_epoch
      warming = warming if to_schedule else step
    ahead = jnp.where(is_start, steps_per_epoch, 0) if config.epoch_starts_ahead else 0
    decayed = decay(jnp.maximum(step + ahead - decay_start, 0))
    if not warmup_steps:
      return decayed
    progress = jnp.minimum(warming, warmup_steps) / warmup_steps
    if to_schedule:
      return warmup_start * (1 - progress) + decayed * progress
    if config.warmup == 'of_schedule':
      start = warmup_start / base_lr
      return decayed * (start + (1 - start) * progress)
    rising = warmup_start + (base_lr - warmup_start) * progress
    return jnp.where(step < warmup_steps, rising, decayed)

  return Schedule(rate, config.warmup_start, warmup_steps)


def _create_decay(
  config: ml_collections.ConfigDict, base_lr: float, decay_steps: int, steps_per_epoch: int
) -> Callable[[jax.Array], jax.Array]:
  """Returns the rate as a function of the steps since the decay's clock started."""
  if config.name == 'step':
    boundaries = [round(epoch * steps_per_epoch) for epoch in config.boundary_epochs]
    if any(later <= earlier for earlier, later in itertools.pairwise([0, *boundaries])):
      raise ValueError(
        f'schedule.boundary_epochs={tuple(config.boundary_epochs)} must be positive and increase '
        'by at least one step'
      )
    return optax.piecewise_constant_schedule(base_lr, dict.fromkeys(boundaries, config.factor))
  if config.name == 'constant':
    return lambda step: jnp.full(step.shape, base_lr, jnp.result_type(float))

  ends = _period_ends(config, decay_steps, steps_per_epoch)
  lengths = np.diff(ends, prepend=0)

  # Written in the steps that remain, an exact integer: 1 - step / decay_steps and 1 + cos(...), as
  # Optax has them, cancel in float32 where the rate is smallest.
  def decay(step: jax.Array) -> jax.Array:
    period = (step[..., None] >= ends[:-1]).sum(-1)
    remaining = jnp.maximum(jnp.take(ends, period) - step, 0) / jnp.take(lengths, period)
    if config.name == 'cosine':
      shape = jnp.sin(jnp.pi / 2 * remaining) ** 2  # = (1 + cos(pi * step / decay_steps)) / 2
    else:
      shape = remaining**config.power
    return config.minimum + (base_lr - config.minimum) * shape

  return decay


def _period_ends(
  config: ml_collections.ConfigDict, decay_steps: int, steps_per_epoch: int
) -> np.ndarray:
  """The steps in which the decay begins anew, up to the first after its end; else its end alone."""
  first, growth = config.restart_epochs * steps_per_epoch, config.restart_growth
  if not first:
    return np.array([decay_steps])
  if round(first) < 1 or growth < 1:
    raise ValueError(
      f'schedule.restart_epochs={config.restart_epochs} must be 0, or at least one step of '
      f'{steps_per_epoch} an epoch, and schedule.restart_growth={growth} at least 1'
    )
  lengths = [first]
  while sum(lengths) < decay_steps + steps_per_epoch:  # the last epoch may start ahead
    lengths.append(lengths[-1] * growth)
  return np.rint(np.cumsum(lengths)).astype(int)


def check_choice(what: str, name: str, known: tuple[str, ...]) -> None:
  """Raises UnknownName for a name that is not known, with one that is near, and all."""
  if name not in known:
    hint = config_errors.near_names(name, known)
    raise config_errors.UnknownName(
      f'unknown {what} {name!r}; {hint}known: {", ".join(known)}', name, known
    )
