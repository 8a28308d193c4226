"""What a run carries from step to step."""

import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections
import optax

from crossattn_jax import parallel, tasks
from crossattn_jax.parallel import parameters
from crossattn_jax.training import patterns


@struct.dataclass
class TrainState:
  """The whole state of a run: restoring it continues the run bit for bit.

  Attributes:
    step: completed steps.
    params: parameters.
    model_state: further collections of the model, such as 'batch_stats'.
    opt_state: of the optimizer.
    ema: averaged `{'params': ..., **model_state}`, or None.
    rng: key of the run; step n uses `fold_in(rng, n)`.
    bad_steps: consecutive steps with a non-finite loss or gradient, up to now.
    frozen: variables of the task's `frozen_models` by name, which no step changes. Checkpoints
      hold a fingerprint of each in their place.
  """

  step: jax.Array
  params: Any
  model_state: Any
  opt_state: Any
  ema: Any
  rng: jax.Array
  bad_steps: jax.Array
  frozen: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def variables(self) -> dict[str, Any]:
    """Parameters and other collections, as the model takes them."""
    return {'params': self.params, **self.model_state}

  @property
  def loss_variables(self) -> dict[str, Any]:
    """What the task's loss takes: also the variables of the frozen models."""
    return {**self.variables, **self.frozen}

  @property
  def eval_variables(self) -> dict[str, Any]:
    """What to evaluate: the average where there is one."""
    return self.variables if self.ema is None else self.ema


def init_state(
  rng: jax.Array,
  task: tasks.Task,
  optimizer: optax.GradientTransformation,
  config: ml_collections.ConfigDict,
) -> TrainState:
  """Builds the initial state; jit it with `state_shardings` to build it in place."""
  rng_init, rng_run = jax.random.split(rng)
  variables = dict(task.init(rng_init))
  params = variables.pop('params')
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=variables,
    opt_state=optimizer.init(params),
    ema={'params': params, **variables} if config.ema.decay > 0 else None,
    rng=rng_run,
    bad_steps=jnp.zeros((), jnp.int32),
    # Not the weights that count, which are read from files; see `weights.load_frozen`.
    frozen={name: dict(model.init(rng_init)) for name, model in task.frozen_models.items()},
  )


def state_shardings(state: TrainState, mesh: Mesh, config: ml_collections.ConfigDict) -> TrainState:
  """Shardings of a state: optimizer state and average are split like the parameters.

  Args:
    state: arrays or `jax.ShapeDtypeStruct`s.
    mesh: of the run.
    config: of the experiment.

  Returns:
    The same structure of `NamedSharding`.

  Raises:
    ValueError: a rule of the config is for no parameter.
  """
  leaves = parameters.leaves_by_path({**state.frozen, **state.params})
  for pattern, axes in config.sharding.rules:
    same_rank = [path for path, x in leaves.items() if x.ndim == len(axes)]
    patterns.check('sharding.rules', [pattern], same_rank)
  rules = (*config.sharding.rules, *parallel.DEFAULT_RULES)
  params, frozen = (
    parallel.tree_shardings(tree, mesh, rules, config.sharding.fsdp_min_size)
    for tree in (state.params, state.frozen)
  )
  shardings = parallel.shardings_like(state, state.params, params, mesh)
  return shardings.replace(params=params, frozen=frozen)
