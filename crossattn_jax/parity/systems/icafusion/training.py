"""Case of what changes from iteration to iteration: rates, momentum, accumulation, average."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from crossattn_jax.parity import adapters
from crossattn_jax.training import accumulation, optimizers, schedules, steps

# Iterations that the original's warm-up takes at least.
_LEAST_WARMUP = 1000


@adapters.register_adapter('icafusion', 'train_schedule')
def _train_schedule(manifest: Mapping[str, Any]) -> adapters.Adapter:
  c = manifest['constructor']
  per_epoch, base = c['batches_per_epoch'], c['lr0']
  config = schedules.default_config()
  config.update(
    # The original's line reaches its end in the last epoch, its cosine after it.
    name='polynomial' if c['linear_lr'] else 'cosine',
    minimum=base * c['lrf'],
    warmup='to_schedule',
    warmup_epochs=float(c['warmup_epochs']),
    warmup_min_steps=_LEAST_WARMUP,
    decay_after_warmup=False,
    per_epoch=True,
    epochs_late=1,
  )
  schedule = schedules.create_schedule(
    config,
    base_lr=base,
    total_steps=(c['epochs'] - bool(c['linear_lr'])) * per_epoch,
    steps_per_epoch=per_epoch,
  )
  warmup_steps, batches = schedule.warmup_steps, c['nbs'] / c['batch']
  bias_start = c['warmup_bias_lr']
  optimizer = optimizers.default_config()
  optimizer.update(momentum=c['momentum'], warmup_momentum=c['warmup_momentum'])
  momentum = optimizers.momentum_schedule(optimizer, warmup_steps)
  step_of = accumulation.step_of_update(batches, warmup_steps)
  average = ml_collections.ConfigDict({'decay': c['ema_decay'], 'ramp_updates': 2000.0})
  updates = jnp.asarray(c['ema_updates'])

  def run(iterations: jax.Array) -> dict[str, jax.Array]:
    iterations = np.asarray(iterations)
    columns = (
      iterations,
      iterations // per_epoch,
      accumulation.steps_per_update(iterations, batches, warmup_steps),
      schedule(iterations),
      schedule(iterations, bias_start),
      momentum(iterations),
      np.isin(iterations, step_of(np.arange(iterations.max() + 1))),
    )
    decay = 1 - steps.newest_share(average, updates)
    return {
      'table': jnp.stack([jnp.asarray(column, decay.dtype) for column in columns], axis=1),
      'ema_decay': jnp.stack([updates.astype(decay.dtype), decay], axis=1),
    }

  return adapters.function_adapter(run)
