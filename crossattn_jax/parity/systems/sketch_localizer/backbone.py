"""Cases of the backbone's blocks and stages."""

from collections.abc import Mapping
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.conversion.mapping import prefixed
from crossattn_jax.conversion.systems import sketch_localizer as rules
from crossattn_jax.layers import sine_position
from crossattn_jax.models.sketch_localizer import backbone
from crossattn_jax.parity import adapters, arguments

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


def _size(manifest: Manifest) -> tuple[int, int]:
  c, inputs = manifest['constructor'], manifest['inputs']
  c.ignore('dim', only=(inputs['tokens']['shape'][-1],))
  for name, length in zip(
    ('det_token_num', 'pos_dim'), inputs['det_pos']['shape'][1:], strict=True
  ):
    c.ignore(name, only=(length,))
  size, tokens = (c['H'], c['W']), inputs['tokens']['shape'][1]
  if math.prod(size) + inputs['det_pos']['shape'][1] != tokens:
    raise arguments.ArgumentError(
      f'H and W are {size}, which with the detection tokens are not the {tokens} tokens of the case'
    )
  return size


@adapters.register_adapter('sketch_localizer', 'ram_block')
def _block(manifest: Manifest) -> adapters.Adapter:
  c, size = manifest['constructor'], _size(manifest)
  shift, sees_patches = c['shift_size'], c['cross_attn']
  module = backbone.Block(
    c['num_heads'], c['window_size'], shift, c.get('mlp_ratio', 4.0), c.get('qkv_bias', True)
  )

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    tokens, position, padding = inputs['tokens'], None, None
    if sees_patches:
      padding = inputs['mask']
      position = sine_position.masked_sine_position(padding, tokens.shape[-1])
    return {'tokens': module(tokens, size, inputs['det_pos'], position, padding)}

  return adapters.module_adapter(
    manifest,
    module,
    rules=prefixed(rules.RECONFIGURED_BLOCK, 'block.'),
    call=call,
    # The original's are the rolled map's.
    taps={'block.attn': ('attention', lambda x: jnp.roll(x[0], (-shift, -shift), axis=(1, 2)))},
  )


@adapters.register_adapter('sketch_localizer', 'ram_stage')
def _stage(manifest: Manifest) -> adapters.Adapter:
  c, size = manifest['constructor'], _size(manifest)
  c.ignore('last')  # The merged tokens' width tells.
  widths = {entry['key']: entry['shape'][0] for entry in manifest['state'] if entry['shape']}
  depth, merges, sees_patches = c['depth'], c['downsample'], c['cross_attn']
  module = backbone.Stage(
    c['num_heads'],
    (0.0,) * depth,
    widths['downsample.reduction.weight'] if merges else None,
    c['window_size'],
    c.get('mlp_ratio', 4.0),
    c.get('qkv_bias', True),
  )

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    padding = inputs['mask'] if sees_patches else None
    tokens, merged, merged_size = module(inputs['tokens'], size, inputs['det_pos'], padding)
    return {'tokens': tokens, 'tokens_down': merged, 'hw_down': jnp.array(merged_size)}

  return adapters.module_adapter(
    manifest,
    module,
    rules=rules.STAGE,
    call=call,
    unused=rules.UNUSED_OF_STAGE,
    taps={f'blocks.{i}': f'block_{i}' for i in range(depth)},
  )
