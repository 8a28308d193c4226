"""Losses of mmsegmentation, and the cases of them."""

import ast
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.conversion.layouts import channels_last
from crossattn_jax.layers import resize
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.tasks.segmentation import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# (NHWC logits of any size, labels) -> loss.
Loss = Callable[[jax.Array, jax.Array], jax.Array]


def make_loss(c: arguments.Arguments, weight: float = 1.0) -> Loss:
  """The cross entropy of a constructor; its weight is `weight` where the case does not say it."""
  c.ignore('use_sigmoid', 'use_mask', only=(False,))
  c.ignore('type', 'loss_name')
  c.ignore('reduction', only=('mean',))
  weight, ignored = c.get('loss_weight', weight), c.get('ignore_index', losses.IGNORE_LABEL)
  class_weights, only_valid = c.get('class_weight'), c.get('avg_non_ignore', False)

  def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    mean = losses.cross_entropy(
      resize.resize(logits, labels.shape[1:], 'bilinear'),
      labels,
      ignore_label=ignored,
      class_weights=None if class_weights is None else jnp.asarray(class_weights),
      count_ignored=True,
    )
    if only_valid:
      mean *= labels.size / jnp.sum(labels != ignored)
    return weight * mean

  return loss


def loss_of_head(head: arguments.Arguments, weight: float) -> Loss:
  """The loss of a head's configuration, whose values may be written as text."""
  given = head.get('loss_decode', {})
  given = ast.literal_eval(given) if isinstance(given, str) else dict(given)
  c = arguments.Arguments(given, 'loss_decode')
  loss = make_loss(c, weight)
  c.check()
  return loss


def accuracy(logits: jax.Array, labels: jax.Array, ignored: int = losses.IGNORE_LABEL) -> jax.Array:
  """Hits in percent of the pixels with a class, in float32 as the original has them."""
  valid = labels != ignored
  predictions = jnp.argmax(resize.resize(logits, labels.shape[1:], 'bilinear'), axis=-1)
  share = 100.0 / (jnp.sum(valid).astype(float) + np.finfo(np.float32).eps)
  hits = jnp.sum((predictions == labels) & valid)
  return hits.astype(jnp.float32) * share.astype(jnp.float32)


def as_map(labels: jax.Array) -> jax.Array:
  """Labels `[batch, height, width]`, also of those with an axis for their one channel."""
  return labels[:, 0] if labels.ndim == 4 else labels


@adapters.register_adapter('crossformer', 'seg_loss_ce')
def _one_loss(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('num_classes', only=(manifest['inputs']['logits']['shape'][1],))
  loss, ignored = make_loss(c), c.get('ignore_index', losses.IGNORE_LABEL)

  def run(logits: jax.Array, labels: jax.Array) -> Arrays:
    logits, labels = channels_last(logits), as_map(labels)
    return {'loss': loss(logits, labels), 'acc': accuracy(logits, labels, ignored)}

  return adapters.function_adapter(run, without_gradient=('acc',), jit=True)


@adapters.register_adapter('biformer', 'loss_segmentation')
def _two_losses(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  loss, auxiliary_weight = make_loss(c), c.get('aux_weight', 0.4)

  def run(logits: jax.Array, aux_logits: jax.Array, label: jax.Array) -> Arrays:
    main, auxiliary = (loss(channels_last(x), as_map(label)) for x in (logits, aux_logits))
    return {'loss': main + auxiliary_weight * auxiliary}

  return adapters.function_adapter(run, jit=True)
