"""Recorded cases of SwiftFormer's losses, adaptive gradient clipping and learning rates."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.conversion import layouts
from crossattn_jax.conversion.systems import swiftformer as swiftformer_rules
from crossattn_jax.models import swiftformer
from crossattn_jax.parity import adapters, epoch_schedules
from crossattn_jax.tasks import losses
from crossattn_jax.training import optimizers

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]
Loss = Callable[[jax.Array, jax.Array, jax.Array | None, jax.Array | None], jax.Array]


def loss_of(c: Mapping[str, Any], distils: bool = True) -> Loss:
  """Returns (logits, labels, distilled logits, teacher's logits) -> the loss of a constructor.

  Labels are classes or soft targets.
  """
  names = ('SoftTargetCrossEntropy', 'LabelSmoothingCrossEntropy', 'CrossEntropyLoss')
  c.ignore('base', only=names)
  # Plain cross entropy is smoothed by nothing.
  smoothing = c.get('smoothing', 0.0 if c.get('base') == 'CrossEntropyLoss' else 0.1)
  kind = c.get('distillation_type', 'hard')
  c.ignore('distillation_type', only=('none', 'soft', 'hard'))
  alpha, tau = c.get('alpha', 0.5), c.get('tau', 1.0)

  def loss(
    logits: jax.Array,
    labels: jax.Array,
    distilled: jax.Array | None,
    teacher: jax.Array | None,
  ) -> jax.Array:
    if jnp.issubdtype(labels.dtype, jnp.integer):
      base = losses.label_smoothing_cross_entropy(logits, labels, smoothing)
    else:
      base = losses.soft_target_cross_entropy(logits, labels)
    if kind == 'none' or not distils:
      return base.mean()
    if kind == 'soft':
      distillation = losses.soft_distillation_loss(distilled, teacher, tau)
    else:
      distillation = losses.hard_distillation_loss(distilled, teacher)
    return ((1 - alpha) * base + alpha * distillation).mean()

  return loss


@adapters.register_adapter('swiftformer', 'DistillationLoss')
def _distillation_loss(manifest: Manifest) -> adapters.Adapter:
  loss = loss_of(manifest['constructor'])
  return adapters.function_adapter(
    lambda out, labels, out_kd=None, teacher=None: {'loss': loss(out, labels, out_kd, teacher)},
    jit=True,
  )


def _leaf(shape: tuple[int, ...]) -> tuple[str, layouts.Layout, tuple[int, ...]]:
  """The name of a parameter of the original's shape, its layout and its shape here."""
  match shape:
    case (_,):
      return 'bias', layouts.LAYOUTS['identity'], shape
    case (channels, 1):
      return 'query_weights', swiftformer_rules.COLUMN, (channels,)
    case (channels, 1, 1):
      return 'layer_scale1', swiftformer_rules.CHANNELS, (channels,)
    case (channels_out, channels_in):
      return 'kernel', layouts.LAYOUTS['linear'], (channels_in, channels_out)
  return 'kernel', layouts.LAYOUTS['conv'], (*shape[2:], shape[1], shape[0])


@adapters.register_adapter('swiftformer', 'adaptive_gradient_clipping')
def _clipping(manifest: Manifest) -> adapters.Adapter:
  """Of parameters p_NAME and their gradients g_NAME, which shapes tell apart."""
  c = manifest['constructor']
  factor, eps = c.get('clip_factor', 0.01), c.get('eps', 1e-3)
  leaves = {
    name.removeprefix('p_'): _leaf(tuple(entry['shape']))
    for name, entry in manifest['inputs'].items()
    if name.startswith('p_')
  }

  def tree(prefix: str, inputs: Arrays) -> dict[str, Any]:
    return {
      name: {leaf: layout.to_flax(inputs[f'{prefix}_{name}'], shape)}
      for name, (leaf, layout, shape) in leaves.items()
    }

  def run(**inputs: jax.Array) -> Arrays:
    clip = optimizers.adaptive_clip(factor, swiftformer.CHANNEL_FACTORS, eps)
    params, gradients = tree('p', inputs), tree('g', inputs)
    clipped, _ = clip.update(gradients, clip.init(params), params)
    return {
      name: layout.to_torch(clipped[name][leaf], inputs[f'p_{name}'].shape)
      for name, (leaf, layout, _) in leaves.items()
    }

  return adapters.function_adapter(run, jit=True)


adapters.register_adapter('swiftformer', 'lr_schedule')(
  epoch_schedules.adapter_of({'code': {'lr': 2e-3}, 'paper': {'lr': 1e-3}})
)
