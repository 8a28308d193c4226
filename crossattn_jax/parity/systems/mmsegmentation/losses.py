"""Losses of segmentation as the originals define them, and the cases of them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.layers import convolution, resize
from crossattn_jax.parity import adapters
from crossattn_jax.parity.layouts import channels_last
from crossattn_jax.parity.mapping import Rule
from crossattn_jax.tasks.segmentation import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# Of mmsegmentation's auxiliary heads.
AUXILIARY_WEIGHT = 0.4


def criterion(
  name: str, options: Mapping[str, Any], pred: jax.Array, pred_dsn: jax.Array, target: jax.Array
) -> jax.Array:
  """One of CCNet's criteria, by its name there, on NCHW logits of any size."""
  main, auxiliary = (
    resize.resize(channels_last(x), target.shape[1:], 'bilinear', align_corners=True)
    for x in (pred, pred_dsn)
  )
  if name == 'CriterionOhemDSN2':
    return losses.cross_entropy(main, target) + losses.lovasz_softmax(main, target)
  if name == 'CriterionOhemDSN':
    loss = losses.ohem_cross_entropy(
      main, target, threshold=options['thresh'], min_kept=options['min_kept']
    )
  else:
    loss = losses.cross_entropy(main, target)
  return loss + 0.4 * losses.cross_entropy(auxiliary, target)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The loss of mmsegmentation on NHWC logits of any size."""
  return losses.cross_entropy(
    resize.resize(logits, labels.shape[1:], 'bilinear'), labels, count_ignored=True
  )


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Hits in percent of the pixels with a class, in float32 as the original has them."""
  valid = labels != losses.IGNORE_LABEL
  predictions = jnp.argmax(resize.resize(logits, labels.shape[1:], 'bilinear'), axis=-1)
  share = 100.0 / (jnp.sum(valid).astype(float) + np.finfo(np.float32).eps)
  hits = jnp.sum((predictions == labels) & valid)
  return hits.astype(jnp.float32) * share.astype(jnp.float32)


@adapters.register_adapter('ccnet', 'loss_dsn')
@adapters.register_adapter('ccnet', 'loss_ohem')
@adapters.register_adapter('ccnet', 'loss_ce_lovasz')
def _criterion(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  return adapters.function_adapter(
    lambda **inputs: {'loss': criterion(c['criterion'], c, **inputs)}, jit=True
  )


@adapters.register_adapter('ccnet', 'CategoryConsistentLoss')
def _category_consistent_loss(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']

  def terms(embeddings: jax.Array, target: jax.Array) -> Arrays:
    loss = losses.category_consistency(
      embeddings,
      target,
      num_classes=19,
      inner=c['delta_v'],
      outer=c['delta_d'],
      piecewise=c['variant'] == 'piecewise',
    )
    total = loss.total(c['alpha'], c['beta'], c['gamma'])
    return {'var': loss.variance, 'dis': loss.distance, 'reg': loss.norm, 'total': total}

  if 'e' in manifest['inputs']:
    return adapters.function_adapter(lambda e, target: terms(channels_last(e), target), jit=True)
  return adapters.module_adapter(
    manifest,
    convolution.convolution(manifest['inputs']['h']['shape'][1], c['channels'], 1),
    rules=[Rule('reduce.weight', 'kernel', 'conv'), Rule('reduce.bias', 'bias')],
    call=lambda conv, inputs: terms(conv(channels_last(inputs['h'])), inputs['target']),
  )


@adapters.register_adapter('crossformer', 'seg_loss_ce')
def _one_loss(manifest: Manifest) -> adapters.Adapter:
  weight = manifest['constructor']['loss_weight']

  def run(logits: jax.Array, labels: jax.Array) -> Arrays:
    logits, labels = channels_last(logits), labels[:, 0]
    return {'loss': weight * cross_entropy(logits, labels), 'acc': accuracy(logits, labels)}

  return adapters.function_adapter(run, without_gradient=('acc',), jit=True)


@adapters.register_adapter('biformer', 'loss_segmentation')
def _two_losses(manifest: Manifest) -> adapters.Adapter:
  del manifest

  def run(logits: jax.Array, aux_logits: jax.Array, label: jax.Array) -> Arrays:
    main, auxiliary = (cross_entropy(channels_last(x), label) for x in (logits, aux_logits))
    return {'loss': main + AUXILIARY_WEIGHT * auxiliary}

  return adapters.function_adapter(run, jit=True)
