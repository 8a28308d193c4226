"""Cases of mmdetection's networks on CrossFormer, and of the geometry that they take from it."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.geometry import anchors, assignment, boxes, encoding, suppression
from crossattn_jax.parity import adapters
from crossattn_jax.parity.systems.crossformer import adapters as models
from crossattn_jax.parity.systems.mmdetection import configs, heads, regions

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


@adapters.register_adapter('crossformer', 'det_box_coder')
@adapters.register_adapter('crossformer', 'det_box_coder_rcnn')
def _box_coder(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  coder = {
    'means': c.get('target_means', (0.0, 0.0, 0.0, 0.0)),
    'stds': c.get('target_stds', (1.0, 1.0, 1.0, 1.0)),
  }
  size, ratio, classes = c['image'], c.get('wh_ratio_clip', 16 / 1000), c.get('num_classes', 1)

  def run(src: jax.Array, dst: jax.Array, deltas: jax.Array) -> Arrays:
    def decode(image_size):
      decoded = encoding.decode(
        src[:, None],
        deltas.reshape(-1, classes, 4),
        image_size=image_size,
        wh_ratio_clip=ratio,
        **coder,
      )
      return decoded.reshape(deltas.shape)

    return {
      'encoded': encoding.encode(src, dst, **coder),
      'decoded': decode(size),
      'decoded_noclip': decode(None),
    }

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('crossformer', 'det_anchors_retinanet')
@adapters.register_adapter('crossformer', 'det_anchors_rpn')
def _anchors(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  dtype, size = np.dtype(c.get('grid_dtype', 'float32')), c['pad_shape']
  described = configs.anchors(c)
  levels = list(zip(described.cells(), c['feature_sizes'], described.strides, strict=True))

  def run() -> Arrays:
    outputs = {}
    for level, (cell, map_size, stride) in enumerate(levels):
      outputs[f'base{level}'] = cell
      outputs[f'level{level}'] = anchors.grid_anchors(cell.astype(dtype), map_size, stride)
      outputs[f'valid{level}'] = anchors.valid_anchors(size, map_size, stride, len(cell))
    return outputs

  return adapters.function_adapter(run, without_gradient=configs.names(manifest), jit=True)


@adapters.register_adapter('crossformer', 'det_max_iou_assign')
def _assignment(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  assigners = {name: configs.assigner(c[name]) for name in c}

  def run(gt: jax.Array, anchors: jax.Array, proposals: jax.Array) -> Arrays:
    outputs = {'iou': boxes.iou(gt[:, None], proposals)}
    is_truth = jnp.ones(len(gt), bool)
    for name, thresholds in assigners.items():
      overlaps = boxes.iou(gt[:, None], proposals if name == 'rcnn' else anchors)
      assigned, best = assignment.max_iou_assignment(overlaps, is_truth, **thresholds)
      # The original counts objects from 1; 0 is background, -1 ignored.
      outputs |= {f'{name}/gt_inds': assigned + 1, f'{name}/max_overlaps': best}
    return outputs

  return adapters.function_adapter(run, without_gradient=configs.names(manifest), jit=True)


@adapters.register_adapter('crossformer', 'det_multiclass_nms')
def _suppression(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  options = {
    'iou_threshold': c['iou_threshold'],
    'score_threshold': c['score_thr'],
    'max_boxes': c['max_num'],
  }
  found = manifest['shapes']['out/scores'][0]  # The original returns as many as there are.

  def run(boxes: jax.Array, scores: jax.Array) -> Arrays:
    scores = scores[:, :-1]  # The last column is the background's.
    count, classes = scores.shape
    # There is a box for each class, or one for all.
    boxes = jnp.broadcast_to(boxes.reshape(count, -1, 4), (count, classes, 4)).reshape(-1, 4)
    scores, labels = scores.reshape(-1), jnp.arange(count * classes) % classes
    kept = suppression.non_maximum_suppression(boxes, scores, labels=labels, **options)[:found]
    best = jnp.where(kept >= 0, scores[kept], 0)
    return {'boxes': boxes[kept], 'scores': best, 'labels': labels[kept], 'indices': kept}

  return adapters.function_adapter(run, without_gradient=configs.names(manifest), jit=True)


def _backbone(manifest: Manifest) -> nn.Module:
  return models.build_model(
    manifest['constructor']['backbone'], backbone=True, lda=models.long_distance(manifest)
  )


@adapters.register_adapter('crossformer', 'det_retinanet_mini_losses')
def _retinanet(manifest: Manifest) -> adapters.Adapter:
  return heads.retinanet_adapter(manifest, _backbone(manifest))


@adapters.register_adapter('crossformer', 'det_maskrcnn_mini_losses')
def _mask_rcnn(manifest: Manifest) -> adapters.Adapter:
  return regions.mask_rcnn_adapter(manifest, _backbone(manifest))
