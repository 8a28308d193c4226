"""Cases of the geometry that CrossFormer's detectors take from mmdetection."""

from collections.abc import Mapping
from typing import Any

import jax

from crossattn_jax.geometry import encoding
from crossattn_jax.parity import adapters

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
      boxes = encoding.decode(
        src[:, None],
        deltas.reshape(-1, classes, 4),
        image_size=image_size,
        wh_ratio_clip=ratio,
        **coder,
      )
      return boxes.reshape(deltas.shape)

    return {
      'encoded': encoding.encode(src, dst, **coder),
      'decoded': decode(size),
      'decoded_noclip': decode(None),
    }

  return adapters.function_adapter(run, jit=True)
