"""Cases of learning rates that timm's cosine schedule sets once an epoch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.parity import adapters
from crossattn_jax.training import schedules

Recipe = Mapping[str, Any]


def adapter_of(recipes: Mapping[str, Recipe]) -> Callable[[Mapping[str, Any]], adapters.Adapter]:
  """Returns `make_adapter` of cases whose outputs are the learning rates of every epoch.

  An output is a recipe: `lr`, `epochs`, `warmup_epochs`, `warmup_lr` and `min_lr`. The constructor
  may have a recipe of the output's name, or one for all outputs.

  Args:
    recipes: of the public case's outputs.
  """

  def make_adapter(manifest: Mapping[str, Any]) -> adapters.Adapter:
    c = manifest['constructor']
    shapes = {name.removeprefix('out/'): shape for name, shape in manifest['shapes'].items()}
    rates = {}
    for name, (length,) in shapes.items():
      common = {'epochs': length, 'warmup_epochs': 5, 'warmup_lr': 1e-6, 'min_lr': 1e-5}
      default = {'lr': None, **common, **recipes.get(name, {})}
      default = {key: c.get(key, value) for key, value in default.items()}
      own = c.get(name, {})
      recipe = {key: own.get(key, value) for key, value in default.items()}
      if recipe['lr'] is None:
        raise KeyError(f'the learning rate {name!r} has no lr')
      rates[name] = (recipe, length)
    return adapters.function_adapter(
      lambda: {name: _rates(*recipe) for name, recipe in rates.items()}
    )

  return make_adapter


def _rates(recipe: Recipe, length: int) -> jax.Array:
  """The rates during the first `length` epochs; the original is one epoch late."""
  config = schedules.default_config()
  config.update(
    minimum=recipe['min_lr'],
    warmup_epochs=float(recipe['warmup_epochs']),
    warmup_start=recipe['warmup_lr'],
    decay_after_warmup=False,
    per_epoch=True,
    epochs_late=1,
  )
  steps_per_epoch = 10
  schedule = schedules.create_schedule(
    config,
    base_lr=recipe['lr'],
    total_steps=recipe['epochs'] * steps_per_epoch,
    steps_per_epoch=steps_per_epoch,
  )
  return schedule(jnp.arange(length) * steps_per_epoch)
