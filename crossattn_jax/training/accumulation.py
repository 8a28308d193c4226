"""Updates by the gradients of several steps, of as many as make a nominal batch.

The rule is YOLOv5's: while the learning rate warms up, an update takes more and more steps. It says
before the run which steps update. So an optimizer inside `optax.MultiSteps`, which counts updates,
knows the step of each.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax


def steps_per_update(step: np.typing.ArrayLike, batches: float, warmup_steps: int) -> np.ndarray:
  """How many steps an update takes, as a function of the step.

  Args:
    step: index of a step, or an array of them.
    batches: in a nominal batch, at the end of the warm-up; rounded, and at least 1.
    warmup_steps: in which the number rises from 1, linearly before it is rounded.

  Returns:
    Integers of the shape of `step`.
  """
  return np.maximum(np.interp(step, [0, warmup_steps], [1, batches]).round(), 1).astype(int)


def step_of_update(
  batches: float, warmup_steps: int
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
  """Builds the function from the index of an update to that of its step.

  Steps update whose index is a multiple of their `steps_per_update`, whose arguments these are: the
  first step is one, and what an update sums are the steps since the one before it.

  Returns:
    A function of integers from -1, whose step is -1 too.
  """
  last_size = int(steps_per_update(warmup_steps, batches, warmup_steps))
  steps = np.arange(warmup_steps + last_size + 1)
  steps = steps[steps % steps_per_update(steps, batches, warmup_steps) == 0]
  steps = np.insert(steps, 0, -1)

  def step_of(update: jax.typing.ArrayLike) -> jax.Array:
    index = jnp.asarray(update).astype(jnp.result_type(int)) + 1
    beyond = jnp.maximum(index - (len(steps) - 1), 0)
    return jnp.asarray(steps)[index - beyond] + last_size * beyond

  return step_of


def accumulate(
  optimizer: optax.GradientTransformation,
  step_of: Callable[[jax.typing.ArrayLike], jax.Array],
) -> optax.GradientTransformation:
  """Gives an optimizer the sum of the gradients since its last update, in the steps that update.

  Args:
    optimizer: whose updates these are, 0 in all other steps.
    step_of: see `step_of_update`.
  """

  def size(update: jax.Array) -> jax.Array:
    return (step_of(update) - step_of(update - 1)).astype(jnp.int32)

  return optax.MultiSteps(
    optimizer, size, use_grad_mean=False, accumulator_dtype=jnp.result_type(float)
  ).gradient_transformation()


def num_updates(state: optax.OptState, steps: jax.Array) -> jax.Array:
  """How many updates an optimizer has made in so many steps: as many, if it does not accumulate."""
  return optax.tree.get(state, 'gradient_step', steps)
