"""Cases of mmsegmentation's networks on CrossFormer."""

from collections.abc import Mapping
from typing import Any

from crossattn_jax.parity import adapters
from crossattn_jax.parity.systems.crossformer import adapters as models
from crossattn_jax.parity.systems.mmsegmentation import adapters as mmsegmentation


@adapters.register_adapter('crossformer', 'SemanticFPN')
@adapters.register_adapter('crossformer', 'SemanticFPN+loss')
@adapters.register_adapter('crossformer', 'UPerNet')
@adapters.register_adapter('crossformer', 'UPerNet+loss')
def _segmentor(manifest: Mapping[str, Any]) -> adapters.Adapter:
  c, lda = manifest['constructor']['backbone'], models.long_distance(manifest)
  return mmsegmentation.segmentor_adapter(
    manifest, models.build_model(c, backbone=True, lda=c.get('lda', lda))
  )
