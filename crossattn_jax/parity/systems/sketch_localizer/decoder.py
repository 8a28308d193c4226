"""Cases of the decoder and of what is done with its queries."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax

from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.mapping import prefixed
from crossattn_jax.conversion.systems import sketch_localizer as rules
from crossattn_jax.heads.detection import deformable_decoder
from crossattn_jax.models.sketch_localizer import refinement
from crossattn_jax.parity import adapters
from crossattn_jax.parity.systems.sketch_localizer import deformable

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


@adapters.register_adapter('sketch_localizer', 'decoder_layer')
def _layer(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  sizes = c['spatial_shapes_hw']
  c.ignore('n_levels', only=(len(sizes),))
  c.ignore('d_model', only=(manifest['inputs']['tgt']['shape'][-1],))
  module = deformable_decoder.DecoderLayer(c['n_heads'], c['n_points'], c['d_ffn'], 0.0)

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    reference = deformable.of_all_levels(nn.sigmoid(inputs['reference_raw']), len(sizes))
    padding = inputs.get('padding_mask')
    arguments = inputs['query_pos'], reference, inputs['memory'], sizes, padding
    return {'tgt': module(inputs['tgt'], *arguments)}

  return adapters.module_adapter(
    manifest, module, rules=rules.DECODER_LAYER, call=call, taps={'cross_attn': 'deformable'}
  )


class _DecoderAndBoxes(nn.Module):
  """A decoder with boxes of its own, or with none."""

  decoder: nn.Module
  num_boxes: int

  def setup(self):
    self.boxes = [deformable_decoder.Regressor() for _ in range(self.num_boxes)]

  def __call__(self, *arguments: Any) -> deformable_decoder.Decoded:
    if self.is_initializing():
      for head in self.boxes:
        head(arguments[0])
    return self.decoder(*arguments, self.boxes or None)


@adapters.register_adapter('sketch_localizer', 'decoder')
def _decoder(manifest: Manifest) -> adapters.Adapter:
  c, inputs = manifest['constructor'], manifest['inputs']
  levels, layers = sum(name.startswith('src') for name in inputs), c['num_decoder_layers']
  c.ignore('num_feature_levels', only=(levels,))
  c.ignore('d_model', only=(inputs['tgt']['shape'][-1],))
  c.ignore('bbox_embed')
  decoder = deformable_decoder.DeformableDecoder(
    layers, c['nhead'], c['dec_n_points'], c['dim_feedforward'], 0.0
  )
  module = _DecoderAndBoxes(decoder, layers + 1 if c['box_refine'] else 0)

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    maps = [channels_last(inputs[f'src{i}']) for i in range(levels)]
    paddings = [inputs[f'mask{i}'] for i in range(levels)]
    decoded = module(inputs['tgt'], inputs['query_pos'], maps, paddings)
    return {
      'hs': decoded.states,
      'init_reference': decoded.first_reference,
      'inter_references': decoded.references,
    }

  return adapters.module_adapter(
    manifest,
    module,
    rules=[
      *prefixed(rules.DECODER, flax='decoder/'),
      *prefixed(rules.REGRESSOR, 'decoder.bbox_embed.{l}.', 'boxes_{l}/'),
    ],
    call=call,
    unused='level_embed',
  )


class _Head(nn.Module):
  """All that comes after the decoder."""

  levels: int
  channels: int
  num_classes: int

  def setup(self):
    self.projection = refinement.SketchProjection(self.channels)
    self.head = refinement.RefinementHead(self.num_classes, drop_rate=0.0)
    self.boxes = [deformable_decoder.Regressor() for _ in range(self.levels)]

  def __call__(
    self, decoded: deformable_decoder.Decoded, position: jax.Array, features: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    return self.head(decoded, position, self.projection(features), self.boxes)


@adapters.register_adapter('sketch_localizer', 'refinement_head')
def _refinement(manifest: Manifest) -> adapters.Adapter:
  c, (levels, _, queries, channels) = manifest['constructor'], manifest['inputs']['hs']['shape']
  c.ignore('num_queries', only=(queries,))
  c.ignore('aux_loss', 'with_box_refine', only=(True,))
  count = c['num_sketches']

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    references = (
      nn.sigmoid(inputs[name]) for name in ('init_reference_raw', 'inter_references_raw')
    )
    decoded = deformable_decoder.Decoded(inputs['hs'], *references)
    features = channels_last(inputs['sketch_features'])
    features = features.reshape(-1, count, *features.shape[1:])
    logits, boxes = module(decoded, inputs['det_pos'], features)
    return {'logits': logits, 'boxes': boxes}

  def sketches_first(x: jax.Array) -> jax.Array:
    return channels_first(x.reshape(-1, *x.shape[2:]))

  return adapters.module_adapter(
    manifest,
    _Head(levels, channels, c['num_classes']),
    rules=[
      *prefixed(rules.SKETCH_PROJECTION, flax='projection/'),
      *prefixed(rules.REFINEMENT_HEAD, flax='head/'),
      *prefixed(rules.REGRESSOR, 'bbox_embed.{l}.', 'boxes_{l}/'),
    ],
    call=call,
    unused=rules.unused_of_refinement_head(levels),
    taps={
      'sketch_proj': ('projection', sketches_first),
      **{
        f'query_fusion{torch}.{level}': (f'head/{flax}_fusion_{level}', lambda result: result[0])
        for level in range(3, levels)
        for torch, flax in (('', 'object'), ('_sketch', 'sketch'))
      },
    },
  )
