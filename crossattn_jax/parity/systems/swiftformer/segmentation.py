"""Cases of mmsegmentation's networks on SwiftFormer."""

from collections.abc import Mapping
from typing import Any

from crossattn_jax.parity import adapters
from crossattn_jax.parity.systems.mmsegmentation import adapters as mmsegmentation
from crossattn_jax.parity.systems.swiftformer import adapters as models


@adapters.register_adapter('swiftformer', 'SwiftFormer+SemanticFPN')
@adapters.register_adapter('swiftformer', 'SwiftFormer+SemanticFPN+loss')
def _segmentor(manifest: Mapping[str, Any]) -> adapters.Adapter:
  c = manifest['constructor']
  # The state says them.
  c.ignore('num_classes', 'fpn_channels', 'head_channels')
  c.ignore_rates('dropout')
  backbone = models.model_of(c.get('backbone', c), backbone=True)
  return mmsegmentation.segmentor_adapter(manifest, backbone)
