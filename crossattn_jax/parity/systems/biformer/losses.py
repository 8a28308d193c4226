"""Cases of BiFormer's losses."""

from collections.abc import Mapping
from typing import Any

import jax

from crossattn_jax.parity import adapters, arguments, classification_losses
from crossattn_jax.tasks import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

adapters.register_adapter('biformer', 'loss_soft_target_ce')(
  classification_losses.soft_target_adapter
)
adapters.register_adapter('biformer', 'loss_label_smoothing_ce')(
  classification_losses.label_smoothing_adapter
)


@adapters.register_adapter('biformer', 'loss_mixup_target_ce')
def _mixup_loss(manifest: Manifest) -> adapters.Adapter:
  return classification_losses.mixup_adapter(manifest, lam=0.3)


@adapters.register_adapter('biformer', 'loss_distill_soft')
@adapters.register_adapter('biformer', 'loss_distill_hard')
def _distillation_loss(manifest: Manifest) -> adapters.Adapter:
  """A loss of the targets, or of integer labels, blended with distillation from a teacher."""
  c = manifest['constructor']
  kind = c.get('type', manifest['module'].removeprefix('loss_distill_'))
  if kind not in ('none', 'soft', 'hard'):
    raise arguments.ArgumentError(f'type is {kind!r}, none of none, soft and hard')
  alpha, tau, smoothing = c.get('alpha', 0.5), c.get('tau', 1.0), c.get('smoothing', 0.1)

  def run(logits: jax.Array, logits_kd: jax.Array, teacher: jax.Array, target: jax.Array) -> Arrays:
    if target.ndim == 1:
      base = losses.label_smoothing_cross_entropy(logits, target, smoothing)
    else:
      base = losses.soft_target_cross_entropy(logits, target)
    if kind == 'none':
      return {'loss': base.mean()}
    if kind == 'soft':
      distilled = losses.soft_distillation_loss(logits_kd, teacher, tau)
    else:
      distilled = losses.hard_distillation_loss(logits_kd, teacher)
    return {'loss': ((1 - alpha) * base + alpha * distilled).mean()}

  return adapters.function_adapter(run)
