"""Cases of the fusion of two streams."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax

from crossattn_jax.attention import cross_modal
from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.systems import icafusion as rules
from crossattn_jax.layers import pooling
from crossattn_jax.models.icafusion import fusion
from crossattn_jax.parity import adapters

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


def _is_training(manifest: Manifest) -> bool:
  return manifest['mode'] == 'train'


def _call_on_tokens(manifest: Manifest):
  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    rgb, thermal = module(inputs['rgb'], inputs['ir'], _is_training(manifest))
    return {'rgb': rgb, 'ir': thermal}

  return call


@adapters.register_adapter('icafusion', 'cross_attention')
def _attention(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('d_model', only=(manifest['inputs']['rgb']['shape'][-1],))
  c.ignore_rates('dropout')
  return adapters.module_adapter(
    manifest,
    cross_modal.DualCrossAttention(c['heads']),
    rules=rules.attention_rules(),
    call=_call_on_tokens(manifest),
  )


@adapters.register_adapter('icafusion', 'cross_block')
def _block(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('d_model', only=(manifest['inputs']['rgb']['shape'][-1],))
  c.ignore('n_layer')  # Of the blocks there are, this one is one.
  c.ignore_rates('dropout')
  return adapters.module_adapter(
    manifest,
    cross_modal.IterativeCrossModalBlock(
      c['heads'], c.get('block_exp', 4), c.get('loops', 1), unused_parameters=True
    ),
    rules=rules.block_rules(unused_parameters=True),
    call=_call_on_tokens(manifest),
  )


def _call_on_maps(manifest: Manifest):
  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    maps = channels_last(inputs['rgb']), channels_last(inputs['ir'])
    return {'fused': channels_first(module(*maps, _is_training(manifest)))}

  return call


@adapters.register_adapter('icafusion', 'pool_mix')
def _pool_mix(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  grid = c['output_h'], c['output_w']

  def call(shrinking: nn.Module, inputs: Arrays) -> Arrays:
    x = channels_last(inputs['x'])
    size = fusion.smaller_size(x.shape[1:3], grid)
    outputs = {
      'avg': pooling.equal_window_average_pool(x, size),
      'max': pooling.equal_window_max_pool(x, size),
      'mix': shrinking(x),
    }
    return {name: channels_first(x) for name, x in outputs.items()}

  return adapters.module_adapter(
    manifest, fusion.SpatialShrinking(grid), rules=rules.shrinking_rules('vis'), call=call
  )


@adapters.register_adapter('icafusion', 'fusion_block')
def _transformer_fusion(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('d_model', only=(manifest['inputs']['rgb']['shape'][1],))
  c.ignore_rates('dropout')
  module = fusion.TransformerFusion(
    grid=(c['vert_anchors'], c['horz_anchors']),
    num_heads=c['h'],
    mlp_ratio=c.get('block_exp', 4),
    depth=c.get('n_layer', 1),
    loops=c.get('loops', 1),
    attention_drop_rate=0.0,
    drop_rate=0.0,
    unused_parameters=True,
  )
  return adapters.module_adapter(
    manifest,
    module,
    rules=rules.transformer_fusion_rules(unused_parameters=True),
    call=_call_on_maps(manifest),
    taps={
      'vis_coefficient': ('shrinking_rgb', channels_first),
      'ir_coefficient': ('shrinking_thermal', channels_first),
      'crosstransformer': (f'block_{module.depth - 1}', lambda streams: streams[0]),
      'conv1x1_out.conv': ('join/conv', channels_first),
    },
  )


@adapters.register_adapter('icafusion', 'nin_fusion')
def _convolution_fusion(manifest: Manifest) -> adapters.Adapter:
  c, channels = manifest['constructor'], manifest['inputs']['rgb']['shape'][1]
  c.ignore('c1', only=(2 * channels,))
  c.ignore('g', only=(1,))
  return adapters.module_adapter(
    manifest,
    fusion.ConvolutionFusion(c['c2'], c.get('k', 1), c.get('s', 1), c.get('p')),
    rules=rules.CONVOLUTION_FUSION,
    call=_call_on_maps(manifest),
  )


@adapters.register_adapter('icafusion', 'add_fusion')
def _sum_fusion(manifest: Manifest) -> adapters.Adapter:
  module = fusion.SumFusion(manifest['constructor']['weight'])
  call = _call_on_maps(manifest)

  def run(**maps: jax.Array) -> Arrays:
    return module.apply({}, maps, method=call)

  return adapters.function_adapter(run, jit=True)
