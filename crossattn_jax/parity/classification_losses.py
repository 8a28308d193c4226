"""Cases of losses that several classifiers were recorded with."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.data.classification import mixing
from crossattn_jax.parity import adapters
from crossattn_jax.tasks import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


def soft_target_adapter(manifest: Manifest) -> adapters.Adapter:
  """Soft-target cross entropy."""
  del manifest
  return adapters.function_adapter(
    lambda logits, target: {'loss': losses.soft_target_cross_entropy(logits, target).mean()}
  )


def label_smoothing_adapter(manifest: Manifest) -> adapters.Adapter:
  """Cross entropy of integer labels: smoothed, by 0.1 where the case does not say it, and plain."""
  smoothing = manifest['constructor'].get('smoothing', 0.1)

  def run(logits: jax.Array, **labels: jax.Array) -> Arrays:
    (label,) = labels.values()  # 'label' or 'labels'
    loss = losses.label_smoothing_cross_entropy(logits, label, smoothing).mean()
    return {'loss': loss, 'ls': loss, 'ce': losses.cross_entropy(logits, label).mean()}

  return adapters.function_adapter(run)


def mixup_adapter(
  manifest: Manifest, lam: float, dtype: jnp.dtype | None = None
) -> adapters.Adapter:
  """Cross entropy against smoothed labels of a batch mixed with its reverse.

  Args:
    manifest: of the case.
    lam: the share of the sample itself where the case does not say it.
    dtype: in which the original makes its targets; None for the logits'.
  """
  c, classes = manifest['constructor'], manifest['inputs']['logits']['shape'][1]
  mixed = c.get('num_classes', classes), c.get('lam', lam), c.get('smoothing', 0.1)

  def run(logits: jax.Array, **labels: jax.Array) -> Arrays:
    (label,) = labels.values()
    target = mixing.mixup_targets(label, *mixed, dtype or logits.dtype).astype(logits.dtype)
    return {'loss': losses.soft_target_cross_entropy(logits, target).mean(), 'target': target}

  return adapters.function_adapter(run)
