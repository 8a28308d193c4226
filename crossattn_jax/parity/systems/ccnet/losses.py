"""Cases of CCNet's losses: its criteria, and the category consistent loss of the journal paper."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax

from crossattn_jax.conversion.layouts import channels_last
from crossattn_jax.conversion.mapping import Rule
from crossattn_jax.layers import convolution, resize
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.tasks.segmentation import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# (logits, logits of the auxiliary head or None, labels) -> loss, the logits NCHW of any size.
Criterion = Callable[[jax.Array, jax.Array | None, jax.Array], jax.Array]


def make_criterion(name: str | None, c: arguments.Arguments) -> Criterion | None:
  """One of CCNet's criteria, by its name there; None has none.

  Raises:
    arguments.ArgumentError: there is no such criterion.
  """
  c.ignore('use_weight')
  c.ignore('reduction', only=('mean', True))
  ignored = {'ignore_label': c.get('ignore_index', losses.IGNORE_LABEL)}
  weight = c.get('dsn_weight', 0.4)
  main_loss = functools.partial(losses.cross_entropy, **ignored)
  if name == 'CriterionOhemDSN':
    min_kept = c.get('min_kept', 100_000)
    main_loss = functools.partial(
      losses.ohem_cross_entropy,
      threshold=c.get('thresh', 0.7),
      min_kept=100_000 if min_kept is None else min_kept,
      factor=c.get('factor', 8),
      **ignored,
    )
  else:
    c.ignore('thresh', 'min_kept', 'factor')
  if name is None:
    return None
  if name not in ('CriterionDSN', 'CriterionOhemDSN', 'CriterionOhemDSN2'):
    raise arguments.ArgumentError(f'criterion {name!r} is none of CCNet')

  def criterion(pred: jax.Array, pred_dsn: jax.Array | None, target: jax.Array) -> jax.Array:
    def resized(x: jax.Array) -> jax.Array:
      return resize.resize(channels_last(x), target.shape[1:], 'bilinear', align_corners=True)

    main = resized(pred)
    loss = main_loss(main, target)
    if name == 'CriterionOhemDSN2':
      return loss + losses.lovasz_softmax(main, target, **ignored)
    if pred_dsn is None:
      return loss
    return loss + weight * losses.cross_entropy(resized(pred_dsn), target, **ignored)

  return criterion


def _criterion_adapter(manifest: Manifest, name: str) -> adapters.Adapter:
  c = manifest['constructor']
  # What the record found on the way.
  c.ignore('ohem_threshold', 'kept_pixels', 'valid_pixels')
  criterion = make_criterion(c.get('criterion', name), c)

  def run(pred: jax.Array, target: jax.Array, pred_dsn: jax.Array | None = None) -> Arrays:
    return {'loss': criterion(pred, pred_dsn, target)}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('ccnet', 'loss_dsn')
def _dsn(manifest: Manifest) -> adapters.Adapter:
  return _criterion_adapter(manifest, 'CriterionDSN')


@adapters.register_adapter('ccnet', 'loss_ohem')
def _ohem(manifest: Manifest) -> adapters.Adapter:
  return _criterion_adapter(manifest, 'CriterionOhemDSN')


@adapters.register_adapter('ccnet', 'loss_ce_lovasz')
def _cross_entropy_and_lovasz(manifest: Manifest) -> adapters.Adapter:
  return _criterion_adapter(manifest, 'CriterionOhemDSN2')


@adapters.register_adapter('ccnet', 'CategoryConsistentLoss')
def _category_consistent_loss(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  # How many pixels and pairs take which branch.
  c.ignore('below_delta_v', 'quadratic', 'linear', 'ordered_pairs_beyond_3', 'ordered_pairs')
  variant = c.get('variant', 'piecewise')
  if variant not in ('piecewise', 'quadratic'):
    raise arguments.ArgumentError(f'variant {variant!r} is neither piecewise nor quadratic')
  options = {
    # Absent classes change nothing: as many as labels can name.
    'num_classes': c.get('num_classes', 256),
    'inner': c.get('delta_v', 0.5),
    'outer': c.get('delta_d', 1.5),
    'piecewise': variant == 'piecewise',
    'ignore_label': c.get('ignore_index', losses.IGNORE_LABEL),
  }
  weights = c.get('alpha', 1.0), c.get('beta', 1.0), c.get('gamma', 0.001)
  channels = c.get('channels', 16)

  def terms(embeddings: jax.Array, target: jax.Array) -> Arrays:
    loss = losses.category_consistency(embeddings, target, **options)
    total = loss.total(*weights)
    return {'var': loss.variance, 'dis': loss.distance, 'reg': loss.norm, 'total': total}

  if 'e' in manifest['inputs']:
    return adapters.function_adapter(lambda e, target: terms(channels_last(e), target), jit=True)
  return adapters.module_adapter(
    manifest,
    convolution.convolution(manifest['inputs']['h']['shape'][1], channels, 1),
    rules=[Rule('reduce.weight', 'kernel', 'conv'), Rule('reduce.bias', 'bias')],
    call=lambda conv, inputs: terms(conv(channels_last(inputs['h'])), inputs['target']),
  )
