"""The training step: a pure function that the loop jits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from crossattn_jax import tasks
from crossattn_jax.layers import batch_norm
from crossattn_jax.training import accumulation, patterns
from crossattn_jax.training import state as state_lib

Metrics = dict[str, jax.Array]
TrainStep = Callable[[state_lib.TrainState, tasks.Batch], tuple[state_lib.TrainState, Metrics]]


def make_train_step(
  task: tasks.Task,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  config: ml_collections.ConfigDict,
) -> TrainStep:
  """Builds the step `(state, batch) -> (state, metrics)`.

  Batch norms that `config.freeze` holds normalise by their running statistics and keep them.
  A step whose loss or gradient is not finite changes nothing but the counters. Metrics are the
  task's and `loss`, `gradient_norm`, `learning_rate`, `bad_steps`.
  """

  def gradients(params: Any, model_state: Any, frozen: Any, batch: tasks.Batch, rng: jax.Array):
    def loss(params):
      with batch_norm.frozen(lambda path: patterns.matches(config.freeze, f'{path}/scale')):
        return task.loss({'params': params, **model_state, **frozen}, batch, rng, train=True)

    (value, (metrics, model_state)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return grads, {'loss': value, **metrics}, model_state

  compute = gradients
  if config.accumulation_steps > 1:
    compute = _accumulated(gradients, config.accumulation_steps)

  def train_step(
    state: state_lib.TrainState, batch: tasks.Batch
  ) -> tuple[state_lib.TrainState, Metrics]:
    rng = jax.random.fold_in(state.rng, state.step)
    grads, metrics, model_state = compute(state.params, state.model_state, state.frozen, batch, rng)
    gradient_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(gradient_norm)

    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.params, value=metrics['loss']
    )
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
      before = accumulation.num_updates(state.opt_state, state.step)
      count = accumulation.num_updates(opt_state, state.step + 1)
      share = jnp.where(count > before, newest_share(config.ema, count), 0.0)
      ema = optax.incremental_update({'params': params, **model_state}, ema, share)
    params, model_state, opt_state, ema = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      (params, model_state, opt_state, ema),
      (state.params, state.model_state, state.opt_state, state.ema),
    )
    bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
    metrics |= {
      'gradient_norm': gradient_norm,
      'learning_rate': schedule(state.step),
      'bad_steps': bad_steps,
    }
    state = state.replace(
      step=state.step + 1,
      params=params,
      model_state=model_state,
      opt_state=opt_state,
      ema=ema,
      bad_steps=bad_steps,
    )
    return state, metrics

  return train_step


def _accumulated(gradients: Callable[..., Any], count: int) -> Callable[..., Any]:
  """The means of what `gradients` returns, over `count` micro-batches one after another.

  Row r goes to micro-batch r mod count, so no row changes device.
  """

  def accumulated(params: Any, model_state: Any, frozen: Any, batch: tasks.Batch, rng: jax.Array):
    split = jax.tree.map(
      lambda x: jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1), batch
    )

    def micro_step(carry, inputs):
      total, model_state = carry
      micro_batch, index = inputs
      grads, metrics, model_state = gradients(
        params, model_state, frozen, micro_batch, jax.random.fold_in(rng, index)
      )
      return (jax.tree.map(jnp.add, total, grads), model_state), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    (total, model_state), metrics = jax.lax.scan(
      micro_step, (zeros, model_state), (split, jnp.arange(count))
    )
    return (
      jax.tree.map(lambda x: x / count, total),
      jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics),
      model_state,
    )

  return accumulated


def newest_share(config: ml_collections.ConfigDict, update: jax.Array) -> jax.Array | float:
  """What the average takes of the newest variables, 1 - its decay, at an update counted from 1."""
  if config.ramp_updates:
    return 1 - config.decay + config.decay * jnp.exp(-update / config.ramp_updates)
  if config.warmup:
    return jnp.maximum(1 - config.decay, 9 / (9.0 + update))
  return 1 - config.decay
