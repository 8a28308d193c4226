"""What the configurations of mmdetection say, and how its cases hold objects."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.conversion.layouts import channels_first
from crossattn_jax.geometry import anchors as anchor_ops
from crossattn_jax.heads import style as style_lib
from crossattn_jax.heads.detection import anchors as anchors_lib
from crossattn_jax.heads.detection import types
from crossattn_jax.parity import arguments

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# Cases say to which size every image was padded.
_AS_PADDED = 1


def names(manifest: Manifest) -> list[str]:
  """Of the recorded outputs."""
  return [name.removeprefix('out/') for name in manifest['shapes'] if name.startswith('out/')]


def anchors(c: arguments.Arguments) -> anchors_lib.Anchors:
  """The anchors of a constructor of anchors, or of a head with some."""
  scales = c.get('scales') or anchor_ops.octave_scales(
    c.get('octave_base_scale', 4), c.get('scales_per_octave', 3)
  )
  return anchors_lib.Anchors(
    strides=tuple(c['strides']),
    scales=tuple(scales),
    ratios=tuple(c['ratios']),
    boxes=style_lib.Boxes(center_offset=c.get('center_offset', 0.0), divisor=_AS_PADDED),
    # The original's anchors are of this dtype in any run.
    dtype=np.dtype(c.get('base_anchor_dtype', 'float32')).type,
  )


def assigner(c: arguments.Arguments) -> dict[str, Any]:
  """The thresholds of a configured MaxIoUAssigner."""
  c.ignore('type', 'gpu_assign_thr', 'iou_calculator')
  c.ignore('ignore_iof_thr', 'ignore_wrt_candidates')  # The cases have no boxes to ignore.
  return {
    'positive': c['pos_iou_thr'],
    'negative': c['neg_iou_thr'],
    'min_positive': c.get('min_pos_iou', 0.0),
    'low_quality': c.get('match_low_quality', True),
    'all_best': c.get('gt_max_assign_all', True),
  }


def truths(inputs: Arrays) -> types.Truths:
  """The objects of all images: 'gt_boxes_0', 'gt_labels_0', 'gt_boxes_1', ..."""
  count = sum(name.startswith('gt_boxes_') for name in inputs)
  boxes = [inputs[f'gt_boxes_{i}'] for i in range(count)]
  labels = [inputs[f'gt_labels_{i}'] for i in range(count)]
  most = max(1, *(len(x) for x in boxes))
  return types.Truths(
    boxes=jnp.stack([jnp.pad(x, ((0, most - len(x)), (0, 0))) for x in boxes]),
    labels=jnp.stack([jnp.pad(x, (0, most - len(x)), constant_values=-1) for x in labels]),
  )


def maps_of_rows(rows: jax.Array, map_sizes: Sequence[Sequence[int]]) -> list[jax.Array]:
  """Rows `[batch, anchors, ...]` of all levels as the originals' maps, channels anchor-major."""
  cells = np.cumsum([height * width for height, width in map_sizes])
  per_cell = rows.shape[1] // cells[-1]
  parts = jnp.split(rows, per_cell * cells[:-1], axis=1)
  return [
    channels_first(part.reshape(len(rows), *size, -1))
    for part, size in zip(parts, map_sizes, strict=True)
  ]
