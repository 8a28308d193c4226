"""Cases of the geometry that ICAFusion takes from YOLOv5."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.geometry import boxes, suppression
from crossattn_jax.parity import adapters

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
  confidence, multi_label = c['conf_thres'], c['multi_label']
  options = {'iou_threshold': c['iou_thres'], 'max_boxes': c.get('max_det', 300)}
  # The original shifts the boxes of classes apart so that they do not overlap.
  shift = c.get('max_wh', 4096) * (not c['agnostic'])

  def detect(prediction: jax.Array) -> tuple[jax.Array, jax.Array]:
    corners = boxes.from_center_size(prediction[:, :4])
    objectness, scores = prediction[:, 4:5], prediction[:, 5:] * prediction[:, 4:5]
    scores = jnp.where(objectness > confidence, scores, 0)
    if not multi_label:
      best = jnp.max(scores, axis=-1, keepdims=True)
      first = jnp.argmax(scores, axis=-1)[:, None] == jnp.arange(scores.shape[-1])
      scores = jnp.where(first, best, 0)
    rows, classes = jnp.indices(scores.shape).reshape(2, -1)
    kept = suppression.non_maximum_suppression(
      corners[rows] + shift * classes[:, None],
      scores.reshape(-1),
      score_threshold=confidence,
      **options,
    )
    rows, classes = rows[kept], classes[kept]
    best = scores[rows, classes][:, None]
    found = jnp.concatenate([corners[rows], best, classes[:, None].astype(best.dtype)], axis=-1)
    return found, jnp.sum(kept >= 0)

  names = [name.removeprefix('out/') for name in manifest['shapes']]

  def run(prediction: jax.Array) -> Arrays:
    found, count = jax.vmap(detect)(prediction)
    sizes = [manifest['shapes'][f'out/det{image}'][0] for image in range(len(found))]
    images = {f'det{image}': found[image, :size] for image, size in enumerate(sizes)}
    return images | {'count': count}

  return adapters.function_adapter(run, without_gradient=names, jit=True)
