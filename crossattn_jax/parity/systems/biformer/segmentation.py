"""Cases of mmsegmentation's networks on BiFormer."""

from collections.abc import Mapping
from typing import Any

import jax

from crossattn_jax.parity import adapters
from crossattn_jax.parity.systems.biformer import adapters as models
from crossattn_jax.parity.systems.mmsegmentation import adapters as mmsegmentation


@adapters.register_adapter('biformer', 'semantic_fpn')
@adapters.register_adapter('biformer', 'semantic_fpn+loss')
@adapters.register_adapter('biformer', 'upernet')
@adapters.register_adapter('biformer', 'upernet+loss')
def _segmentor(manifest: Mapping[str, Any]) -> adapters.Adapter:
  c = manifest['constructor']
  c.get('auto_pad')
  fields = {} if 'auto_pad' in c else {'padding': 'input'}
  backbone = models.build_model(c, 'biformer_small', backbone=True, **fields)

  def looks(features: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    chosen = models.recorded_routing(features, backbone.options)
    return {f'route/backbone.stages.{key}': regions for key, regions in chosen.items()}

  return mmsegmentation.segmentor_adapter(manifest, backbone, looks)
