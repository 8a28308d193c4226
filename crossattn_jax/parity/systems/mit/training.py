"""The case of the learning rates of both stages."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from crossattn_jax.parity import adapters
from crossattn_jax.training import schedules


@adapters.register_adapter('mit', 'train_lr_schedules')
def _learning_rates(manifest: Mapping[str, Any]) -> adapters.Adapter:
  c = manifest['constructor']
  cosine, polynomial = c['stage1'], c['stage2']
  base_lrs = {'stage1': cosine['base_lr'], 'stage2': polynomial['base_lr']}
  keys = {
    'stage1': {
      'restart_epochs': float(cosine['T_0']),
      'restart_growth': float(cosine['T_mult']),
      'minimum': float(cosine['eta_min']),
      'steps_late': 1,
      'epoch_starts_ahead': True,
    },
    'stage2': {'name': 'polynomial', 'power': float(polynomial['power'])},
  }

  def run(iters_per_epoch, epochs):
    per_epoch = int(np.squeeze(iters_per_epoch))
    steps = jnp.arange(int(np.squeeze(epochs)) * per_epoch)
    rates = {}
    for stage, base_lr in base_lrs.items():
      config = schedules.default_config()
      config.update(keys[stage])
      schedule = schedules.create_schedule(
        config, base_lr=base_lr, total_steps=len(steps), steps_per_epoch=per_epoch
      )
      rates[f'{stage}_lr'] = schedule(steps)
    return rates

  return adapters.function_adapter(run)
