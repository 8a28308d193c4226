"""Cases of what ICAFusion takes from YOLOv5: boxes, head, losses, suppression."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.conversion.layouts import channels_last
from crossattn_jax.conversion.systems import icafusion as rules
from crossattn_jax.geometry import boxes
from crossattn_jax.heads.detection import anchors as anchors_lib
from crossattn_jax.heads.detection import types, yolo
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.tasks.detection import yolo_losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


@adapters.register_adapter('icafusion', 'ciou')
def _ciou(manifest: Manifest) -> adapters.Adapter:
  eps = manifest['constructor'].get('eps', 1e-7)

  def run(pred_xywh: jax.Array, target_xywh: jax.Array) -> Arrays:
    corners = map(boxes.from_center_size, (pred_xywh, target_xywh))
    return {'ciou': boxes.ciou(*corners, eps=eps)}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('icafusion', 'non_max_suppression')
def _suppression(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  distance, far = c.get('max_wh', 4096), 4096  # Boxes of classes so far apart do not overlap.
  options = {
    'score_threshold': c['conf_thres'],
    'iou_threshold': c['iou_thres'],
    'max_boxes': c.get('max_det', 300),
    'multi_label': c['multi_label'],
    'agnostic': c['agnostic'],
  }
  names = [name.removeprefix('out/') for name in manifest['shapes']]

  def run(prediction: jax.Array) -> Arrays:
    corners = boxes.from_center_size(prediction[..., :4])
    find = yolo.find_objects
    if distance < far and not options['agnostic']:
      find = functools.partial(_find_objects_shifted, distance)
    found = find(corners, prediction[..., 4], prediction[..., 5:], **options)
    labels = found.labels.astype(prediction.dtype)
    rows = jnp.concatenate([found.boxes, jnp.stack([found.scores, labels], axis=-1)], axis=-1)
    sizes = [manifest['shapes'][f'out/det{image}'][0] for image in range(len(rows))]
    images = {f'det{image}': rows[image, :size] for image, size in enumerate(sizes)}
    return images | {'count': jnp.sum(found.labels >= 0, axis=1)}

  return adapters.function_adapter(run, without_gradient=names, jit=True)


def _find_objects_shifted(
  distance: float,
  corners: jax.Array,
  objectness: jax.Array,
  classes: jax.Array,
  *,
  multi_label: bool,
  agnostic: bool,
  **options: float,
) -> types.Detections:
  """As `find_objects`, the boxes of every class moved by a distance from those of the last.

  A box is a row per class here, where it has that class alone.
  """
  del agnostic
  count = classes.shape[-1]
  own = jnp.eye(count, dtype=bool)
  if not multi_label:
    own &= jnp.argmax(classes, axis=-1)[..., None, None] == jnp.arange(count)
  rows = jnp.where(own, classes[..., None, :], 0).reshape(len(classes), -1, count)
  shifted = corners[:, :, None] + distance * jnp.arange(count)[:, None]
  found = yolo.find_objects(
    shifted.reshape(len(corners), -1, 4),
    jnp.repeat(objectness, count, axis=1),
    rows,
    agnostic=True,
    **options,
  )
  boxes = jnp.take_along_axis(corners, found.anchors[..., None] // count, axis=1)
  return found.replace(boxes=boxes)


# Our names of the losses and the original's, in its order.
_GAINS = {'box': 'box', 'objectness': 'obj', 'class': 'cls'}


def anchor_sizes(c: arguments.Arguments) -> tuple[tuple[tuple[float, float], ...], ...]:
  """Widths and heights of a case's anchors, which it has in a row per level."""
  return tuple(tuple(zip(x[::2], x[1::2], strict=True)) for x in c['anchors'])


def _anchors(c: arguments.Arguments) -> anchors_lib.SizedAnchors:
  return anchors_lib.SizedAnchors(tuple(map(int, c['strides'])), anchor_sizes(c))


def _levels(inputs: Arrays) -> list[str]:
  """The names of the levels, finest first."""
  return sorted(name for name in inputs if name[0] == 'p' and name[1:].isdigit())


@adapters.register_adapter('icafusion', 'detect')
def _detect(manifest: Manifest) -> adapters.Adapter:
  c, names = manifest['constructor'], _levels(manifest['inputs'])
  anchors = _anchors(c)
  c.ignore('ch', only=([manifest['inputs'][name]['shape'][1] for name in names],))

  def call(head: nn.Module, inputs: Arrays) -> Arrays:
    maps = [channels_last(inputs[name]) for name in names]
    grid = anchors_lib.AnchorGrid(anchors, tuple(x.shape[1:3] for x in maps))
    return rules.original_outputs(head(maps), grid, names)

  module = yolo.YoloHead(c['nc'], anchors.per_cell)
  return adapters.module_adapter(manifest, module, rules=rules.YOLO_HEAD, call=call)


@adapters.register_adapter('icafusion', 'DetectionLoss')
def _loss(manifest: Manifest) -> adapters.Adapter:
  c, names = manifest['constructor'], _levels(manifest['inputs'])
  anchors = _anchors(c)
  c.ignore('nc', only=(manifest['inputs'][names[0]]['shape'][-1] - 5,))
  losses = losses_of(manifest)

  def run(targets: jax.Array, **maps: jax.Array) -> Arrays:
    maps = [maps[name] for name in names]
    grid = anchors_lib.AnchorGrid(anchors, tuple(x.shape[2:4] for x in maps))
    rows = jnp.concatenate(
      [jnp.moveaxis(x, 1, 3).reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1
    )
    outputs = {
      'box_logits': rows[..., :4],
      'objectness': rows[..., 4],
      'logits': rows[..., 5:],
    }
    return losses(outputs, targets, grid)

  return adapters.function_adapter(run, without_gradient=['items'], jit=True)


def losses_of(
  manifest: Manifest,
) -> Callable[[Mapping[str, jax.Array], jax.Array, anchors_lib.AnchorGrid], Arrays]:
  """(outputs of the head, targets, anchors) -> the losses, and the assignment where recorded."""
  c = manifest['constructor']
  gains, balance = c['gains'], c['balance']
  max_ratio = gains['anchor_t']
  options = {
    'gains': {f'{name}_loss': gains[key] for name, key in _GAINS.items()},
    'iou_share': c['gr'],
    'label_smoothing': gains['label_smoothing'],
    'gamma': gains['fl_gamma'],
    'objectness_weight': gains['obj_pw'],
    'class_weight': gains['cls_pw'],
  }

  def run(
    outputs: Mapping[str, jax.Array], targets: jax.Array, grid: anchors_lib.AnchorGrid
  ) -> Arrays:
    objectness, anchors = outputs['objectness'], grid.anchors
    # Every image has room for all objects, so that they keep their order.
    own = targets[:, 0] == jnp.arange(len(objectness))[:, None]
    labels = jnp.where(own, targets[:, 1], -1).astype(jnp.int32)
    positives = []
    for sizes, stride, (height, width) in zip(
      anchors.sizes, anchors.strides, grid.map_sizes, strict=True
    ):
      size, level = (stride * height, stride * width), anchors_lib.SizedAnchors((stride,), (sizes,))
      centers = jnp.broadcast_to(boxes.denormalize(targets[:, 2:], size), (*own.shape, 4))
      positives += yolo_losses.assign_centers(centers, labels, level.of_input(size), max_ratio)
    losses = yolo_losses.yolo_losses(
      outputs, positives, grid, balance=balance[: len(anchors.strides)], **options
    )
    items = [losses[f'{name}_loss'] for name in _GAINS]
    items = jnp.stack([*items, jnp.zeros_like(items[0])])
    results = {'loss': len(objectness) * items.sum(keepdims=True), 'items': items}
    for index, level in enumerate(positives):
      name = f'assign{index}_b_a_gj_gi_cls'
      if f'out/{name}' in manifest['shapes']:
        size = manifest['shapes'][f'out/{name}'][0]
        results[name], results[f'assign{index}_tbox'] = _in_order(level, size, objectness.dtype)
    return results

  return run


def _in_order(
  level: yolo_losses.Positives, size: int, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
  """The slots that count, steps slowest, then anchors, then objects: what they are, and boxes."""
  slots = jnp.nonzero(jnp.moveaxis(level.found, 0, -1), size=size, fill_value=-1)
  step, anchor, thing, image = slots
  at = image, step, anchor, thing
  parts = image, anchor, *jnp.unstack(level.cells[at], axis=-1), level.labels[at]
  return jnp.stack(parts, axis=-1).astype(dtype), level.boxes[at]
