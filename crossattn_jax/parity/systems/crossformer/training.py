"""Cases of CrossFormer's training: learning rates, losses; and of its progressive group sizes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crossattn_jax.models import crossformer
from crossattn_jax.parity import adapters, classification_losses
from crossattn_jax.training import schedules

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

adapters.register_adapter('crossformer', 'loss_soft_target_ce')(
  classification_losses.soft_target_adapter
)
adapters.register_adapter('crossformer', 'loss_label_smoothing_ce')(
  classification_losses.label_smoothing_adapter
)


@adapters.register_adapter('crossformer', 'loss_mixup_soft_ce')
def _mixup_loss(manifest: Manifest) -> adapters.Adapter:
  # The original makes its targets in float32, whatever the logits are.
  return classification_losses.mixup_adapter(manifest, lam=0.37, dtype=jnp.float32)


@adapters.register_adapter('crossformer', 'pgs_group_sizes')
def _group_sizes(manifest: Manifest) -> adapters.Adapter:
  """Group sizes by rule and depths, which the outputs' names say."""
  c = manifest['constructor']
  resolution, given = c.get('resolution', 56), c.get('group_size')
  names = [name.removeprefix('out/') for name in manifest['shapes']]

  def sizes(name: str) -> jax.Array:
    rule, depths = name.split('/depths_')
    per_stage = given or ((7, 7, 14, 7) if rule == '7_14' else (4, 4, 14, 7))
    depths = [int(depth) for depth in depths.split('_')]
    of_stages = crossformer.group_sizes_of_blocks(
      rule, per_stage[: len(depths)], depths, resolution
    )
    return jnp.asarray(np.concatenate(of_stages), jnp.result_type(float))

  return adapters.function_adapter(lambda: {name: sizes(name) for name in names})


# Of the official recipes: the classifier's, and those of mmsegmentation and mmdetection, in the
# words of their configurations; and the steps at which the rates were recorded.
_RECIPES = {
  'cosine': {
    'base_lr': 1e-3,
    'min_lr': 1e-5,
    'warmup_lr': 1e-6,
    'epochs': 300,
    'warmup_epochs': 20,
    'iterations_per_epoch': 40,
    'steps': (0, 1, 2, 399, 400, 799, 800, 801, 1200, 3000, 6000, 9000, 11999, 12000, 12001),
  },
  'poly_upernet': {
    'base_lr': 6e-5,
    'max_iters': 160_000,
    'power': 1.0,
    'min_lr': 0.0,
    'warmup_iters': 1500,
    'warmup_ratio': 1e-6,
    'steps': (0, 1, 100, 749, 1499, 1500, 1501, 80_000, 159_999),
  },
  'poly_fpn': {
    'base_lr': 1e-4,
    'max_iters': 80_000,
    'power': 0.9,
    'min_lr': 0.0,
    'warmup_iters': 0,
    'warmup_ratio': 1.0,
    'steps': (0, 1, 100, 40_000, 79_999),
  },
  'step_det': {
    'base_lr': 1e-4,
    'epochs': 12,
    'step': (8, 11),
    'gamma': 0.1,
    'iterations_per_epoch': 7330,
    'warmup_iters': 500,
    'warmup_ratio': 1e-3,
    'steps': (0, 1, 250, 499, 500, 501, 58_639, 58_640, 80_629, 80_630, 87_959),
  },
}


def _schedule(recipe: Mapping[str, Any]) -> optax.Schedule:
  """The schedule of a recipe in the originals' words."""
  per_epoch = recipe.get('iterations_per_epoch', 1)
  config = schedules.default_config()
  config.decay_after_warmup = False
  config.minimum = recipe.get('min_lr', 0.0)
  if 'power' in recipe:
    config.name, config.power = 'polynomial', recipe['power']
  elif 'step' in recipe:
    config.name, config.factor = 'step', recipe['gamma']
    config.boundary_epochs = tuple(recipe['step'])
  if 'warmup_epochs' in recipe:
    config.warmup_epochs, config.warmup_start = recipe['warmup_epochs'], recipe['warmup_lr']
  else:
    config.warmup, config.warmup_steps = 'of_schedule', recipe['warmup_iters']
    config.warmup_start = recipe['base_lr'] * recipe['warmup_ratio']
  return schedules.create_schedule(
    config,
    base_lr=recipe['base_lr'],
    total_steps=recipe.get('max_iters') or recipe['epochs'] * per_epoch,
    steps_per_epoch=per_epoch,
  )


@adapters.register_adapter('crossformer', 'lr_schedules')
def _learning_rates(manifest: Manifest) -> adapters.Adapter:
  """Learning rates of the recipes; a case may say what is other in one: `cosine: {epochs: 100}`."""
  c = manifest['constructor']
  recipes = {}
  for name, recipe in _RECIPES.items():
    given = c.get(name, {})
    recipes[name] = {word: given.get(word, value) for word, value in recipe.items()}

  def run() -> Arrays:
    outputs = {}
    for name, recipe in recipes.items():
      steps = jnp.asarray(recipe['steps'])
      outputs[f'{name}/steps'] = steps.astype(jnp.result_type(float))
      outputs[f'{name}/lr'] = _schedule(recipe)(steps)
    return outputs

  return adapters.function_adapter(run)
