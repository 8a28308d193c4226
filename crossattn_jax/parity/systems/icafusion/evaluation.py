"""Cases of the metrics that ICAFusion's tables show."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from crossattn_jax.metrics import coco, miss_rate, yolo
from crossattn_jax.parity import adapters

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


@adapters.register_adapter('icafusion', 'metric_average_precision')
def _average_precision(manifest: Manifest) -> adapters.Adapter:
  start, step, stop = map(float, manifest['constructor']['iou_thresholds'].split(':'))
  thresholds = np.linspace(start, stop, round((stop - start) / step) + 1)

  def run(det_img: jax.Array, det: jax.Array, gt_img: jax.Array, gt: jax.Array) -> Arrays:
    det, gt = np.asarray(det), np.asarray(gt)
    truths = coco.Instances(np.asarray(gt_img), gt[:, 0], gt[:, 1:])
    found = coco.Instances(np.asarray(det_img), det[:, 5], det[:, :4], det[:, 4])
    right = yolo.match(truths, found, thresholds)
    result = yolo.average_precision(right, found.score, found.label, truths.label)
    return {
      'correct': right.astype(det.dtype),
      'ap': result.ap,
      'precision': result.precision,
      'recall': result.recall,
      'f1': result.f1,
      'classes': result.classes,
      'map50': result.ap[:, 0].mean(),
      'map75': result.ap[:, 5].mean(),
      'map': result.ap.mean(),
    }

  return adapters.function_adapter(run)


@adapters.register_adapter('icafusion', 'metric_kaist_miss_rate')
def _miss_rate(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  day = np.arange(c['images']) < c['day_images']

  def run(gt: jax.Array, det: jax.Array) -> Arrays:
    gt, det = np.asarray(gt), np.asarray(det)
    truths = miss_rate.Pedestrians(
      image=gt[:, 0].astype(int),
      box=_corners(gt[:, 1:5]),
      occlusion=gt[:, 5],
      ignored=gt[:, 6] > 0,
      height=gt[:, 4],
    )
    found = coco.Instances(det[:, 0], np.zeros(len(det)), _corners(det[:, 1:5]), det[:, 5])
    outputs = {}
    for name, result in miss_rate.miss_rates(truths, found, day).items():
      outputs |= {
        f'mr_{name}': np.asarray(result.rate),
        f'recall_at_fppi_{name}': result.recall,
        f'fppi_curve_{name}': result.false_positives,
        f'miss_curve_{name}': result.misses,
      }
    return outputs

  return adapters.function_adapter(run)


def _corners(boxes: np.ndarray) -> np.ndarray:
  corner, size = np.split(boxes, 2, axis=1)
  return np.concatenate([corner, corner + size], axis=1)
