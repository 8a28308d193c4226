"""Cases of mmsegmentation's metric."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.metrics import segmentation as metrics
from crossattn_jax.parity import adapters
from crossattn_jax.tasks.segmentation import losses


@adapters.register_adapter('crossformer', 'seg_miou')
def _mean_iou(manifest: Mapping[str, Any]) -> adapters.Adapter:
  c = manifest['constructor']
  classes = c.get('num_classes') or manifest['shapes']['out/IoU'][0]
  ignored = c.get('ignore_index', losses.IGNORE_LABEL)
  without_zero, nan = c.get('reduce_zero_label', False), c.get('nan_to_num', -1)

  def run(pred: jax.Array, label: jax.Array) -> dict[str, np.ndarray]:
    if without_zero:
      label = jnp.where((label == 0) | (label == ignored), ignored, label - 1)
    confusion = np.asarray(metrics.confusion_matrix(label, pred, classes, ignore_label=ignored))
    iou = metrics.intersection_over_union(confusion)
    # The original averages in float32.
    return {
      'aAcc': np.array([metrics.pixel_accuracy(confusion)], np.float32),
      'IoU': np.nan_to_num(iou, nan=nan),
      'Acc': np.nan_to_num(metrics.class_accuracy(confusion), nan=nan),
      'mIoU': np.array([metrics.mean_over_classes(iou, absent='skip')], np.float32),
    }

  names = [name.removeprefix('out/') for name in manifest['shapes']]
  return adapters.function_adapter(run, without_gradient=names)
