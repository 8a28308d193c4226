"""Cases of what CrossFormer's detectors cut out of maps and masks, as mmdetection does."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import kernels
from crossattn_jax.geometry import mask_pasting
from crossattn_jax.geometry import masks as mask_ops
from crossattn_jax.parity import adapters

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


@adapters.register_adapter('crossformer', 'det_roi_extract')
def _roi_extractor(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('out_channels')  # The maps have them.
  size = c['output_size']
  options = {
    'size': size if isinstance(size, int) else tuple(size),
    'strides': tuple(c['featmap_strides']),
    'finest_scale': c.get('finest_scale', 56),
    'sampling_ratio': c.get('sampling_ratio', 0),
    'aligned': c.get('aligned', True),
  }

  def run(rois: jax.Array, **levels: jax.Array) -> Arrays:
    maps = [levels[name].transpose(0, 2, 3, 1) for name in sorted(levels)]
    image, boxes = rois[:, 0].astype(jnp.int32), rois[:, 1:]
    everywhere = jnp.broadcast_to(boxes, (len(maps[0]), *boxes.shape))
    pooled = kernels.roi_align_pyramid(maps, everywhere, **options)
    return {'pooled': pooled[image, jnp.arange(len(boxes))].transpose(0, 3, 1, 2)}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('crossformer', 'det_mask_geometry')
def _mask_geometry(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  size, side, threshold = tuple(c['image']), c['mask_size'], c['threshold']

  def run(proposals, index, masks, probs, boxes) -> Arrays:
    targets = mask_ops.mask_targets(masks.astype(bool), proposals, index, side)
    pasted = mask_pasting.paste_masks(np.asarray(probs)[:, 0], boxes, size, threshold=None)
    return {
      'targets': targets.astype(probs.dtype),
      'pasted': jnp.asarray(pasted),
      'masks': jnp.asarray(pasted >= threshold),
    }

  return adapters.function_adapter(run, without_gradient=('targets', 'pasted', 'masks'))
