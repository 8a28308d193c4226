"""Losses of segmentation as the originals define them, and the cases of them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.layers import resize
from crossattn_jax.parity import adapters
from crossattn_jax.parity.layouts import channels_last
from crossattn_jax.tasks.segmentation import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# Of mmsegmentation's auxiliary heads.
AUXILIARY_WEIGHT = 0.4


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
