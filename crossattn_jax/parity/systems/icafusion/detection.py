"""Cases of what ICAFusion takes from YOLOv5: boxes, head, losses, suppression."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.conversion.layouts import channels_last
from crossattn_jax.conversion.systems import icafusion as rules
from crossattn_jax.geometry import boxes
from crossattn_jax.heads.detection import anchors as anchors_lib
from crossattn_jax.heads.detection import yolo
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
  c.ignore('max_wh', only=(4096,))  # Boxes of classes so far apart do not overlap.
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
    found = yolo.find_objects(corners, prediction[..., 4], prediction[..., 5:], **options)
    labels = found.labels.astype(prediction.dtype)
    rows = jnp.concatenate([found.boxes, jnp.stack([found.scores, labels], axis=-1)], axis=-1)
    sizes = [manifest['shapes'][f'out/det{image}'][0] for image in range(len(rows))]
    images = {f'det{image}': rows[image, :size] for image, size in enumerate(sizes)}
    return images | {'count': jnp.sum(found.labels >= 0, axis=1)}

  return adapters.function_adapter(run, without_gradient=names, jit=True)


# Our names of the losses and the original's, in its order.
_GAINS = {'box': 'box', 'objectness': 'obj', 'class': 'cls'}


def _anchors(c: arguments.Arguments) -> anchors_lib.SizedAnchors:
  sizes = tuple(tuple(zip(x[::2], x[1::2], strict=True)) for x in c['anchors'])
  return anchors_lib.SizedAnchors(tuple(map(int, c['strides'])), sizes)


def _levels(inputs: Arrays) -> list[str]:
  """The names of the levels, finest first."""
  return sorted(name for name in inputs if name[0] == 'p' and name[1:].isdigit())


def _original_order(grid: anchors_lib.AnchorGrid, rows: jax.Array) -> list[jax.Array]:
  """Rows `[batch, anchors, n]` as maps of the levels, `[batch, per_cell, height, width, n]`."""
  batch, _, channels = rows.shape
  return [
    jnp.moveaxis(rows[:, level].reshape(batch, *size, grid.anchors.per_cell, channels), 3, 1)
    for level, size in zip(grid.levels, grid.map_sizes, strict=True)
  ]


@adapters.register_adapter('icafusion', 'detect')
def _detect(manifest: Manifest) -> adapters.Adapter:
  c, names = manifest['constructor'], _levels(manifest['inputs'])
  anchors = _anchors(c)
  c.ignore('ch', only=([manifest['inputs'][name]['shape'][1] for name in names],))

  def call(head: nn.Module, inputs: Arrays) -> Arrays:
    maps = [channels_last(inputs[name]) for name in names]
    grid = anchors_lib.AnchorGrid(anchors, tuple(x.shape[1:3] for x in maps))
    outputs = head(maps)
    raw = [outputs['box_logits'], outputs['objectness'][..., None], outputs['logits']]
    decoded = yolo.decode_boxes(outputs['box_logits'], grid)
    decoded = jnp.concatenate([decoded, *map(nn.sigmoid, raw[1:])], axis=-1)

    def in_a_row(rows: jax.Array) -> jax.Array:
      maps = _original_order(grid, rows)
      return jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1)

    raw_maps = _original_order(grid, jnp.concatenate(raw, axis=-1))
    return {
      'decoded': in_a_row(decoded),
      'class_logits': in_a_row(outputs['logits']),
      **{f'raw_{name}': x for name, x in zip(names, raw_maps, strict=True)},
    }

  module = yolo.YoloHead(c['nc'], anchors.per_cell)
  return adapters.module_adapter(manifest, module, rules=rules.YOLO_HEAD, call=call)


@adapters.register_adapter('icafusion', 'DetectionLoss')
def _loss(manifest: Manifest) -> adapters.Adapter:
  c, names = manifest['constructor'], _levels(manifest['inputs'])
  anchors, gains = _anchors(c), c['gains']
  c.ignore('nc', only=(manifest['inputs'][names[0]]['shape'][-1] - 5,))
  max_ratio = gains['anchor_t']
  options = {
    'gains': {f'{name}_loss': gains[key] for name, key in _GAINS.items()},
    'balance': c['balance'][: len(names)],
    'iou_share': c['gr'],
    'label_smoothing': gains['label_smoothing'],
    'gamma': gains['fl_gamma'],
    'objectness_weight': gains['obj_pw'],
    'class_weight': gains['cls_pw'],
  }

  def run(targets: jax.Array, **maps: jax.Array) -> Arrays:
    maps = [maps[name] for name in names]
    grid = anchors_lib.AnchorGrid(anchors, tuple(x.shape[2:4] for x in maps))
    rows = jnp.concatenate(
      [jnp.moveaxis(x, 1, 3).reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1
    )
    # Every image has room for all objects, so that they keep their order.
    own = targets[:, 0] == jnp.arange(len(rows))[:, None]
    labels = jnp.where(own, targets[:, 1], -1).astype(jnp.int32)
    positives = []
    for sizes, stride, (height, width) in zip(
      anchors.sizes, anchors.strides, grid.map_sizes, strict=True
    ):
      size, level = (stride * height, stride * width), anchors_lib.SizedAnchors((stride,), (sizes,))
      centers = jnp.broadcast_to(boxes.denormalize(targets[:, 2:], size), (*own.shape, 4))
      positives += yolo_losses.assign_centers(centers, labels, level.of_input(size), max_ratio)
    outputs = {
      'box_logits': rows[..., :4],
      'objectness': rows[..., 4],
      'logits': rows[..., 5:],
    }
    losses = yolo_losses.yolo_losses(outputs, positives, grid, **options)
    items = jnp.stack([losses[f'{name}_loss'] for name in _GAINS] + [jnp.zeros_like(rows[0, 0, 0])])
    results = {'loss': len(rows) * items.sum(keepdims=True), 'items': items}
    for index, level in enumerate(positives):
      name = f'assign{index}_b_a_gj_gi_cls'
      if f'out/{name}' in manifest['shapes']:
        size = manifest['shapes'][f'out/{name}'][0]
        results[name], results[f'assign{index}_tbox'] = _in_order(level, size, rows.dtype)
    return results

  return adapters.function_adapter(run, without_gradient=['items'], jit=True)


def _in_order(
  level: yolo_losses.Positives, size: int, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
  """The slots that count, steps slowest, then anchors, then objects: what they are, and boxes."""
  slots = jnp.nonzero(jnp.moveaxis(level.found, 0, -1), size=size, fill_value=-1)
  step, anchor, thing, image = slots
  at = image, step, anchor, thing
  parts = image, anchor, *jnp.unstack(level.cells[at], axis=-1), level.labels[at]
  return jnp.stack(parts, axis=-1).astype(dtype), level.boxes[at]
