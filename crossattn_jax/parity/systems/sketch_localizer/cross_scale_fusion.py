"""Cases of the fusion of maps of all strides."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax

from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.mapping import prefixed
from crossattn_jax.conversion.systems import sketch_localizer as rules
from crossattn_jax.heads import cross_scale_fusion
from crossattn_jax.parity import adapters


@adapters.register_adapter('sketch_localizer', 'fpn_cross_scale_fusion')
def _fusion(manifest: Mapping[str, Any]) -> adapters.Adapter:
  c, inputs = manifest['constructor'], manifest['inputs']
  count, train = len(inputs), manifest['mode'] == 'train'
  c.ignore('embed_dims', only=([inputs[f'x{i}']['shape'][1] for i in range(count)],))
  c.ignore('n_block', only=(count,))

  def call(module: nn.Module, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    fused = module([channels_last(inputs[f'x{i}']) for i in range(count)], train)
    return {f'y{i}': channels_first(x) for i, x in enumerate(reversed(fused))}

  return adapters.module_adapter(
    manifest,
    cross_scale_fusion.CrossScaleFusion(c['fuse_dim'], c['use_bn']),
    rules=prefixed(rules.CROSS_SCALE_FUSION, 'multi_scaler.'),
    call=call,
    unused=rf'multi_scaler\.refinenet_{count - 1}\.(smoothing|resConfUnit1)\..*',
  )
