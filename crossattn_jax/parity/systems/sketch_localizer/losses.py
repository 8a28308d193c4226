"""Cases of matching, of the losses, and of what is found."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.heads.detection import queries as queries_lib
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.tasks.detection import dense_losses, set_losses
from crossattn_jax.tasks.detection import losses as losses_lib
from crossattn_jax.tasks.sketch_localization import losses as localizer_losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


def _cost_weights(c: arguments.Arguments) -> dict[str, float]:
  return {
    'class_weight': c['cost_class'],
    'box_weight': c['cost_bbox'],
    'giou_weight': c['cost_giou'],
  }


def _labels(count: jax.Array, most: int, labels: Any = None) -> jax.Array:
  """Labels `[batch, most]`, -1 from each image's count on; 1 where none are given."""
  given = jnp.ones((len(count), most), jnp.int32)
  for image, own in enumerate(labels or ()):
    given = given.at[image, : len(own)].set(jnp.array(own, jnp.int32))
  return jnp.where(jnp.arange(most) < count[:, None], given, -1)


@adapters.register_adapter('sketch_localizer', 'matcher')
def _matcher(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  weights, given = _cost_weights(c), c.get('labels')

  def run(
    logits: jax.Array, boxes_raw: jax.Array, tgt_raw: jax.Array, tgt_count: jax.Array
  ) -> Arrays:
    boxes, truths = nn.sigmoid(boxes_raw), nn.sigmoid(tgt_raw)
    arrays = logits, boxes, _labels(tgt_count, truths.shape[1], given), truths
    columns = manifest['shapes']['out/query_of_target'][1]
    return {
      'cost': set_losses.matching_cost(*arrays, **weights)[..., :columns],
      'query_of_target': set_losses.match(*arrays, **weights)[:, :columns],
    }

  return adapters.function_adapter(run, jit=True)


# The original's names of the losses, and ours.
_NAMES = {'loss_ce': 'class_loss', 'loss_bbox': 'box_loss', 'loss_giou': 'giou_loss'}
_LOGGED = ('class_error', 'cardinality_error')
# What the original computes for each of its `losses`.
_PARTS = {
  'labels': ('loss_ce', 'class_error'),
  'boxes': ('loss_bbox', 'loss_giou'),
  'cardinality': ('cardinality_error',),
}


@adapters.register_adapter('sketch_localizer', 'set_criterion')
def _criterion(manifest: Manifest) -> adapters.Adapter:
  c, inputs = manifest['constructor'], manifest['inputs']
  c.ignore('num_classes', only=(inputs['logits']['shape'][-1],))
  c.ignore('focal_alpha')  # The original has 0.25, whatever it is told.
  weights, number = _cost_weights(c), c['levels']
  if unknown := set(c['losses']) - set(_PARTS):
    raise arguments.ArgumentError(f'losses {sorted(unknown)}; known are {", ".join(_PARTS)}')
  names = [name for part in c['losses'] for name in _PARTS[part]]
  totals = dict(c['weight_dict'])
  suffixes = [*(f'_{level}' for level in range(number - 1)), '']

  def run(
    logits: jax.Array, boxes_raw: jax.Array, tgt_raw: jax.Array, tgt_count: jax.Array
  ) -> Arrays:
    # Levels are first in the original.
    levels = {'logits': logits.swapaxes(0, 1), 'boxes': nn.sigmoid(boxes_raw.swapaxes(0, 1))}
    arrays = levels, _labels(tgt_count, tgt_raw.shape[1]), nn.sigmoid(tgt_raw)
    queries = localizer_losses.match(*arrays, **weights)
    found = localizer_losses.of_levels(*arrays, queries)
    outputs = {
      f'{name}{suffix}': found[_NAMES.get(name, name)][level]
      for level, suffix in enumerate(suffixes)
      for name in names
    }
    computed = {name: weight for name, weight in totals.items() if name in outputs}
    outputs['total'] = set_losses.weighted_sum(outputs, computed)
    columns = manifest['shapes']['out/query_of_target'][-1]
    outputs['query_of_target'] = queries.swapaxes(0, 1)[..., :columns]
    return outputs

  logged = [f'{name}{suffix}' for name in _LOGGED if name in names for suffix in suffixes]
  return adapters.function_adapter(run, without_gradient=logged, jit=True)


@adapters.register_adapter('sketch_localizer', 'loss_focal')
def _focal(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  count, gamma = c['num_boxes'], c['gamma']
  c.ignore('alpha')  # The original has 0.25, whatever it is told.

  def run(logits: jax.Array, onehot: jax.Array) -> Arrays:
    loss = dense_losses.focal_loss(logits, onehot, gamma=gamma)
    return {'loss': loss.mean(axis=1).sum() / count}

  return adapters.function_adapter(run, jit=True)


def _matched(manifest: Manifest, loss: Callable[..., Arrays]) -> adapters.Adapter:
  """The adapter of a loss of matched queries, which gets what it needs by name."""
  weights = _cost_weights(manifest['constructor'])

  def run(
    logits: jax.Array,
    boxes_raw: jax.Array,
    tgt_raw: jax.Array,
    tgt_count: jax.Array,
    **others: jax.Array,
  ) -> Arrays:
    boxes, truths = nn.sigmoid(boxes_raw), nn.sigmoid(tgt_raw)
    labels = _labels(tgt_count, truths.shape[1])
    queries = set_losses.match(logits, boxes, labels, truths, **weights)
    return loss(logits, boxes, labels, truths, queries, **others)

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('sketch_localizer', 'loss_iou_aware')
def _iou_aware(manifest: Manifest) -> adapters.Adapter:
  count = manifest['constructor']['num_boxes']

  def loss(logits, boxes, labels, truths, queries, ious):
    del logits
    value = set_losses.iou_loss(ious[..., 0], boxes, labels, truths, queries, count)
    return {'loss_iouaware': value}

  return _matched(manifest, loss)


@adapters.register_adapter('sketch_localizer', 'loss_sketch_margin')
def _margins(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  margin, pair_margin, scale = c['margin'], c['margin_v2'], c['scale_v2']

  def loss(logits, boxes, labels, truths, queries):
    del boxes, truths
    wanted = set_losses.labels_of_queries(queries, labels, logits.shape[1]) >= 0
    scores = nn.sigmoid(logits[..., 1])
    return {
      'loss_margin': set_losses.margin_loss(scores, wanted, margin),
      'loss_margin_v2': scale * set_losses.pair_margin_loss(scores, wanted, pair_margin),
    }

  return _matched(manifest, loss)


@adapters.register_adapter('sketch_localizer', 'loss_distillation')
def _distillation(manifest: Manifest) -> adapters.Adapter:
  shapes = manifest['constructor']['shapes']

  def run(**inputs: jax.Array) -> Arrays:
    student, teacher = (
      [
        *(jnp.moveaxis(inputs[f'{whose}_patch{level}'], 1, -1) for level in range(len(shapes))),
        inputs[f'{whose}_body'],
        *inputs[f'{whose}_neck'],
      ]
      for whose in 'st'
    )
    return {'loss_distil': set_losses.token_matching_loss(student, teacher)}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('sketch_localizer', 'postprocess')
def _postprocess(manifest: Manifest) -> adapters.Adapter:
  count = manifest['constructor'].get('topk', 100)

  def run(logits: jax.Array, boxes_raw: jax.Array, target_sizes: jax.Array) -> Arrays:
    found = queries_lib.find_objects(logits, nn.sigmoid(boxes_raw), target_sizes, count)
    return {'scores': found.scores, 'labels': found.labels, 'boxes': found.boxes}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('sketch_localizer', 'loss_masks')
def _masks(manifest: Manifest) -> adapters.Adapter:
  c, most = manifest['constructor'], manifest['inputs']['masks']['shape'][1]
  count = c['num_boxes']
  queries = jnp.array([[*own, *[-1] * (most - len(own))] for own in c['matched_queries']])

  def run(pred_masks: jax.Array, masks: jax.Array, tgt_count: jax.Array) -> Arrays:
    is_truth = (jnp.arange(most) < tgt_count[:, None]) & (queries >= 0)
    logits = losses_lib.rows_at(pred_masks, queries)
    losses = dense_losses.mask_losses(logits, masks, is_truth, count)
    return {'loss_mask': losses['mask_loss'], 'loss_dice': losses['dice_loss']}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('sketch_localizer', 'loss_token_label')
def _token_labels(manifest: Manifest) -> adapters.Adapter:
  c, inputs = manifest['constructor'], manifest['inputs']
  count, levels = c['num_boxes'], len(c['shapes'])
  c.ignore('num_classes', only=(inputs['tok0']['shape'][-1],))

  def run(masks: jax.Array, labels: jax.Array, **tokens: jax.Array) -> Arrays:
    maps = [tokens[f'tok{level}'] for level in range(levels)]
    losses = dense_losses.token_label_losses(maps, masks, labels, count)
    return {
      'loss_token_focal': losses['token_focal_loss'],
      'loss_token_dice': losses['token_dice_loss'],
    }

  return adapters.function_adapter(run, jit=True)
