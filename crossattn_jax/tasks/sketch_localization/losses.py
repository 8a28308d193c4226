"""Losses of a sketch localizer: at every level, each object has a query of its own.

Source: Locformer, Tripathi et al. 2024 (arXiv 2303.08784), in the form of its code; with options of
ViDT, Song et al. 2022 (arXiv 2110.03921).
"""

from collections.abc import Mapping

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.geometry import boxes as box_ops
from crossattn_jax.heads.detection import types
from crossattn_jax.tasks.detection import set_losses

Losses = dict[str, jax.Array]

# The class of what the sketch shows. No object is of class 0.
MATCH = 1
ERRORS = ('class_error', 'cardinality_error')


def localizer_losses(
  outputs: Mapping[str, jax.Array],
  truths: types.Truths,
  image_size: jax.Array,
  weights: Mapping[str, float],
  *,
  matching: Mapping[str, float] | None = None,
  margin: float = 0.5,
  pair_margin: float = -0.3,
) -> Losses:
  """What queries of all levels say of the objects that the sketch shows.

  Args:
    outputs: of the model: 'logits' `[batch, levels, queries, classes]`, 'boxes' `[batch, levels,
      queries, 4]`, centres and sizes as fractions of the image; where the model has such a head,
      'ious' `[batch, levels, queries]`.
    truths: what the sketch shows, with the label 0.
    image_size: (height, width) in pixels of the part of the input that is image, `[batch, 2]`.
    weights: of the losses by their names; those without one, or with 0, are left out.
    matching: see `match`.
    margin: see `set_losses.margin_loss`.
    pair_margin: see `set_losses.pair_margin_loss`.

  Returns:
    The losses times their weights: 'class_loss', 'box_loss', 'giou_loss', 'iou_loss', 'margin_loss'
    and 'pair_margin_loss' of the last level, and 'auxiliary_loss', the sum of the same of all
    others. All but margins are divided by the number of objects in the batch. And of the last level
    'class_error' in per cent and 'cardinality_error'; see `set_losses`.
  """
  labels, boxes = targets(truths, image_size)
  queries = match(outputs, labels, boxes, **(matching or {}))
  every = of_levels(outputs, labels, boxes, queries, margin=margin, pair_margin=pair_margin)
  weighted = {name: weights[name] * x for name, x in every.items() if weights.get(name)}
  losses = {name: x[-1] for name, x in weighted.items()}
  losses['auxiliary_loss'] = sum(x[:-1].sum() for x in weighted.values())
  return losses | {name: every[name][-1] for name in ERRORS}


def targets(truths: types.Truths, image_size: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Objects as set losses take them: labels, and boxes as centres and sizes in fractions."""
  labels = jnp.where(truths.labels >= 0, MATCH, -1)
  return labels, box_ops.to_center_size(box_ops.normalize(truths.boxes, image_size[:, None]))


def match(
  outputs: Mapping[str, jax.Array], labels: jax.Array, boxes: jax.Array, **weights: float
) -> jax.Array:
  """The query of each object at every level, each level for itself.

  Args:
    outputs: as for `localizer_losses`.
    labels: `[batch, objects]`, of `targets`.
    boxes: `[batch, objects, 4]`, likewise.
    **weights: of `set_losses.matching_cost`.

  Returns:
    `[batch, levels, objects]` int32, -1 in padding.
  """
  batch, levels = outputs['logits'].shape[:2]

  def repeated(x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x[:, None], (batch, levels, *x.shape[1:]))

  # All levels are one batch, of one loop: an image's levels are neighbours, on its device.
  arrays = outputs['logits'], outputs['boxes'], repeated(labels), repeated(boxes)
  rows = [x.reshape(batch * levels, *x.shape[2:]) for x in arrays]
  return set_losses.match(*rows, **weights).reshape(batch, levels, -1)


def of_levels(
  outputs: Mapping[str, jax.Array],
  labels: jax.Array,
  boxes: jax.Array,
  queries: jax.Array,
  *,
  margin: float = 0.5,
  pair_margin: float = -0.3,
) -> Losses:
  """The losses and errors of every level, without weights.

  Args:
    outputs: as for `localizer_losses`.
    labels: `[batch, objects]`, of `targets`.
    boxes: `[batch, objects, 4]`, likewise.
    queries: of `match`.
    margin: as for `localizer_losses`.
    pair_margin: likewise.

  Returns:
    Arrays `[levels]`.
  """
  count = set_losses.number_of_objects(labels)

  def of_level(level: Mapping[str, jax.Array], queries: jax.Array) -> Losses:
    logits, truth = level['logits'], (labels, boxes, queries)
    losses = set_losses.set_losses(logits, level['boxes'], *truth, count)
    if 'ious' in level:
      losses['iou_loss'] = set_losses.iou_loss(level['ious'], level['boxes'], *truth, count)
    is_matched = set_losses.labels_of_queries(queries, labels, logits.shape[1]) >= 0
    scores = nn.sigmoid(logits[..., MATCH])
    return losses | {
      'margin_loss': set_losses.margin_loss(scores, is_matched, margin),
      'pair_margin_loss': set_losses.pair_margin_loss(scores, is_matched, pair_margin),
      'class_error': set_losses.class_error(logits, labels, queries),
      'cardinality_error': set_losses.cardinality_error(logits, labels),
    }

  levels = {name: outputs[name] for name in ('logits', 'boxes', 'ious') if name in outputs}
  return jax.vmap(of_level, in_axes=1)(levels, queries)


def distillation_loss(
  student: Mapping[str, jax.Array], teacher: Mapping[str, jax.Array]
) -> jax.Array:
  """How far tokens are from those of a teacher; see `set_losses.token_matching_loss`.

  Args:
    student: features of the model, which has them for the same patches and queries.
    teacher: those of the other; without gradient.
  """
  tokens = []
  for features in (student, teacher):
    maps = [features[name] for name in sorted(features) if name.startswith('map_')]
    queries = jnp.moveaxis(features['queries'], 1, 0)
    # Those of the backbone are also the decoder's first.
    own = [*maps, queries[0], *queries]
    tokens.append([x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in own])
  return set_losses.token_matching_loss(*tokens)
