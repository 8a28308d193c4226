"""Cases of the geometry that the sketch localizer takes from DETR."""

from collections.abc import Mapping
from typing import Any

import jax

from crossattn_jax.geometry import boxes
from crossattn_jax.parity import adapters


@adapters.register_adapter('sketch_localizer', 'box_giou')
def _giou(manifest: Mapping[str, Any]) -> adapters.Adapter:
  def run(a_raw: jax.Array, b_raw: jax.Array) -> dict[str, jax.Array]:
    first, second = (boxes.from_center_size(jax.nn.sigmoid(raw)) for raw in (a_raw, b_raw))
    pairs = first[:, None], second
    return {'giou': boxes.giou(*pairs), 'iou': boxes.iou(*pairs)}

  return adapters.function_adapter(run, jit=True)
