"""Cases of sketch-guided attention and its positions."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import sketch_guided
from crossattn_jax.conversion.layouts import as_tokens, channels_first, channels_last
from crossattn_jax.conversion.systems import sketch_localizer as rules
from crossattn_jax.layers import sine_position
from crossattn_jax.parity import adapters, arguments

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


@adapters.register_adapter('sketch_localizer', 'sine_position')
def _sine_position(manifest: Manifest) -> adapters.Adapter:
  channels = 2 * manifest['constructor']['num_pos_feats']

  def run(x: jax.Array) -> Arrays:
    position = channels_first(sine_position.sine_position(*x.shape[2:], channels)[None])
    return {'pos': jnp.repeat(position, len(x), axis=0)}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('sketch_localizer', 'masked_sine_position')
def _masked_sine_position(manifest: Manifest) -> adapters.Adapter:
  channels = manifest['constructor']['dim']

  def run(mask: jax.Array) -> Arrays:
    return {'pos': sine_position.masked_sine_position(mask, channels)}

  return adapters.function_adapter(run, jit=True)


def _ignore_width(c: arguments.Arguments, channels: int) -> None:
  c.ignore('d_model', only=(channels,))


def _sketches_last(x: jax.Array) -> jax.Array:
  """From the original's `[batch, (sketches,) channels, rows, columns]`."""
  x = x[:, None] if x.ndim == 4 else x
  return jnp.moveaxis(x, 2, -1)


def _cross_attention(manifest: Manifest, sketches: str, fusion: str) -> adapters.Adapter:
  c = manifest['constructor']
  _ignore_width(c, manifest['inputs']['x']['shape'][1])

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    tokens, features = module(channels_last(inputs['x']), _sketches_last(inputs[sketches]))
    return {
      'tokens': as_tokens(tokens),
      'attended': features['attended'],
      'attention_mean': features['weights'],
    }

  return adapters.module_adapter(
    manifest,
    sketch_guided.SketchCrossAttention(fusion, c['n_heads'], c['d_ffn'], 0.0),
    rules=rules.SKETCH_CROSS_ATTENTION,
    call=call,
    unused=rules.UNUSED_OF_GUIDED_FUSION,
    taps={'attention_proj': ('projection', channels_first)},
  )


@adapters.register_adapter('sketch_localizer', 'stage_fusion')
def _stage_fusion(manifest: Manifest) -> adapters.Adapter:
  return _cross_attention(manifest, 'sketch', 'mean')


@adapters.register_adapter('sketch_localizer', 'stage_fusion_multi')
def _stage_fusion_of_several(manifest: Manifest) -> adapters.Adapter:
  count = manifest['inputs']['sketches']['shape'][1]
  manifest['constructor'].ignore('num_sketches', only=(count,))
  return _cross_attention(manifest, 'sketches', 'trainable')


@adapters.register_adapter('sketch_localizer', 'trainable_sketch_fusion')
def _sketch_fusion(manifest: Manifest) -> adapters.Adapter:
  c, (_, count, channels, *_) = manifest['constructor'], manifest['inputs']['sketches']['shape']
  _ignore_width(c, channels)
  c.ignore('num_sketches', only=(count,))

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    fused = module(_sketches_last(inputs['sketches']))
    tokens, correct = as_tokens(fused), channels_first(fused)
    return {
      'tokens': tokens,
      'map_correct': correct,
      'map_as_in_bytecode': tokens.reshape(correct.shape),
    }

  return adapters.module_adapter(
    manifest,
    sketch_guided.SketchFusion(c['n_heads'], c['d_ffn'], 0.0),
    rules=rules.SKETCH_FUSION,
    call=call,
    unused=rules.UNUSED_OF_GUIDED_FUSION,
  )
