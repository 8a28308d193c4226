"""Cases of mmdetection's losses of examples."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.parity import adapters
from crossattn_jax.tasks.detection import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


def _mean(terms: jax.Array, number: float) -> jax.Array:
  return jnp.sum(terms)[None] / (number + losses.EPS)


@adapters.register_adapter('crossformer', 'det_loss_focal')
def _focal_loss(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  alpha, gamma, number = c['alpha'], c['gamma'], c['avg_factor']

  def run(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Arrays:
    terms = losses.focal_loss(logits, labels, weights, alpha=alpha, gamma=gamma)
    return {'loss': _mean(terms, number)}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('crossformer', 'det_loss_box')
def _box_losses(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  beta, number = c['beta'], c['avg_factor']
  # Its name holds its beta.
  smooth = next(name for name in manifest['shapes'] if name.startswith('out/smooth_l1'))

  def run(pred: jax.Array, target: jax.Array, weights: jax.Array) -> Arrays:
    return {
      'l1': _mean(losses.box_loss(pred, target, weights), number),
      smooth.removeprefix('out/'): _mean(losses.box_loss(pred, target, weights, beta), number),
    }

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('biformer', 'loss_retinanet')
def _retinanet_loss(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  alpha, gamma, number = c['alpha'], c['gamma'], c['avg_factor']

  def run(cls, label, label_weight, reg, reg_target, reg_weight) -> Arrays:
    classes = losses.focal_loss(cls, label, label_weight, alpha=alpha, gamma=gamma)
    boxes = losses.box_loss(reg, reg_target, reg_weight)
    # Written again without mmdetection's small number in the divisor.
    return {'loss': (jnp.sum(classes) + jnp.sum(boxes))[None] / number}

  return adapters.function_adapter(run, jit=True)
