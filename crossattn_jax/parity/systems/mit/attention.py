"""Cases of the attentions, of blocks of them, and of what is before and behind them."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import interlaced, positioned, self_attention
from crossattn_jax.conversion.systems import crossvit
from crossattn_jax.conversion.systems import mit as rules
from crossattn_jax.layers import linear
from crossattn_jax.models.mit import encoder, heads, supervoxels
from crossattn_jax.parity import adapters, arguments, score_scale

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


_RATES = ('drop', 'attn_drop', 'drop_rate', 'attn_drop_rate', 'drop_path', 'drop_path_rate')


def encoder_options(c: arguments.Arguments) -> dict[str, Any]:
  """The fields of an `Encoder`, or of its blocks, that drops nothing."""
  c.ignore_rates(*_RATES)
  return {
    'num_heads': c.get('num_heads', 4),
    'mlp_ratio': c.get('mlp_ratio', 1),
    'drop_rate': 0.0,
    'drop_path_rate': 0.0,
  }


def _weights(num_heads: int) -> Callable[[tuple[jax.Array, ...]], jax.Array]:
  """Self-attention's weights, of the projections to queries, keys and values."""

  def weigh(projected: tuple[jax.Array, ...]) -> jax.Array:
    query, key, _ = (linear.split_heads(x, num_heads) for x in projected)
    return positioned.attention_weights(query, key)

  return weigh


@adapters.register_adapter('mit', 'self_attention')
@score_scale.takes_scale()
def _self_attention(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('dim', 'num_classes')
  c.ignore_rates('attn_drop', 'proj_drop')
  heads = c.get('num_heads', 4)
  return adapters.module_adapter(
    manifest,
    self_attention.SelfAttention(heads, qkv_bias=c.get('qkv_bias', False)),
    rules=crossvit.SELF_ATTENTION,
    call=lambda module, inputs: {'y': module(inputs['x'])},
    taps={'weights': ('qkv', _weights(heads))},
  )


@adapters.register_adapter('mit', 'encoder_block')
@score_scale.takes_scale()
def _encoder_block(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('dim', 'num_classes')
  c.ignore('qkv_bias', only=(False,))
  options = encoder_options(c)
  return adapters.module_adapter(
    manifest,
    encoder.EncoderBlock(**options),
    rules=crossvit.TRANSFORMER_BLOCK,
    call=lambda module, inputs: {'y': module(inputs['x'])},
    taps={'weights': ('attention/qkv', _weights(options['num_heads']))},
  )


@adapters.register_adapter('mit', 'encoder_official')
@score_scale.takes_scale()
def _encoder(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('embed_dim')
  c.ignore('qkv_bias', only=(False,))
  options, depth = encoder_options(c), c.get('depth', 3)
  last = f'block_{depth - 1}/attention/qkv'
  return adapters.module_adapter(
    manifest,
    encoder.Encoder(depth, **options),
    rules=rules.ENCODER,
    call=lambda module, inputs: {'y': module(inputs['x'])},
    taps={
      'weights_last': (last, _weights(options['num_heads'])),
      **{f'blocks.{i}': f'block_{i}' for i in range(depth)},
    },
  )


def _across(module: nn.Module, inputs: Arrays, skips: bool) -> Arrays:
  """Of the originals, those that skip classes return logits, the others weights."""
  out, logits = module(inputs['q'], inputs['v'])
  return {'y': out, 'weights': logits if skips else nn.softmax(logits)}


def _cross_attention(skips: bool) -> Callable[[Manifest], adapters.Adapter]:
  @score_scale.takes_scale()
  def make(manifest: Manifest) -> adapters.Adapter:
    c = manifest['constructor']
    c.ignore('dim')
    c.ignore_rates('attn_drop', 'proj_drop')
    classes = c['num_classes'] if skips else 0
    return adapters.module_adapter(
      manifest,
      interlaced.ClassSkippingAttention(
        c.get('num_heads', 4), classes, c['out_dim'], c.get('qkv_bias', False)
      ),
      rules=rules.CROSS_ATTENTION,
      call=lambda module, inputs: _across(module, inputs, skips),
    )

  return make


def _decoder_block(skips: bool) -> Callable[[Manifest], adapters.Adapter]:
  @score_scale.takes_scale()
  def make(manifest: Manifest) -> adapters.Adapter:
    c = manifest['constructor']
    c.ignore('dim')
    c.ignore('qkv_bias', only=(False,))
    c.ignore('dim_q', only=(None,))
    c.ignore_rates(
      'drop', 'attn_drop', 'drop_rate', 'attn_drop_rate', 'drop_path', 'drop_path_rate'
    )
    classes = c['num_classes'] if skips else 0
    return adapters.module_adapter(
      manifest,
      interlaced.InterlacedBlock(c.get('num_heads', 4), classes, c.get('mlp_ratio', 0.2)),
      rules=rules.INTERLACED_BLOCK,
      call=lambda module, inputs: _across(module, inputs, skips),
    )

  return make


adapters.register_adapter('mit', 'cross_attention')(_cross_attention(False))
adapters.register_adapter('mit', 'cross_skip_cls_attention')(_cross_attention(True))
adapters.register_adapter('mit', 'decoder_block')(_decoder_block(False))
adapters.register_adapter('mit', 'skipcls_decoder_block')(_decoder_block(True))


def class_blocks(logits: list[jax.Array], num_classes: int) -> list[jax.Array]:
  """Means over the heads of what class tokens give for class tokens, `[batch, c, c]` per block."""
  return [x[..., :num_classes, :num_classes].mean(axis=1) for x in logits]


@adapters.register_adapter('mit', 'interlaced_decoder')
@score_scale.takes_scale()
def _decoder(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('embed_dim')
  c.ignore('qkv_bias', only=(False,))
  c.ignore_rates(*_RATES)
  depth, classes = c.get('depth', 4), c.get('num_classes', 20)

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    views, voxels, logits = module(inputs['view_tokens'], inputs['voxel_tokens'])
    blocks = class_blocks(logits, classes)
    return {
      'view_out': views,
      'voxel_out': voxels,
      **{f'cls_logits_{i}': x for i, x in enumerate(blocks)},
      **{f'weights_{i}': x for i, x in enumerate(logits)},
    }

  return adapters.module_adapter(
    manifest,
    interlaced.InterlacedDecoder(depth, c.get('num_heads', 4), classes, c.get('mlp_ratio', 0.2)),
    rules=rules.DECODER,
    call=call,
    taps={f'blocks.{i}': (f'block_{i}', lambda result: result[0]) for i in range(depth)},
  )


@adapters.register_adapter('mit', 'pos_mlp')
def _position_mlp(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('input_dim')
  widths = [c['hidden_dim']] * (c['num_layers'] - 1) + [c['output_dim']]
  return adapters.module_adapter(
    manifest,
    encoder.PositionMlp(tuple(widths)),
    rules=rules.POSITION_MLP,
    call=lambda module, inputs: {'y': module(inputs['xyz'])},
  )


class _Heads(nn.Module):
  """The heads of class activation alone."""

  num_classes: int

  @nn.compact
  def __call__(self, points: jax.Array, encoded: jax.Array, views: jax.Array) -> Arrays:
    cells = jnp.concatenate([points, encoded], axis=1)
    cells = heads.activation(cells, self.num_classes, 'head_voxels')
    points, encoded = jnp.split(cells, [points.shape[1]], axis=1)
    views = heads.activation(views, self.num_classes, 'head_views')
    return {'cam3d': nn.softmax(points), 'cam3d_on_attn': encoded, 'cam2d': views}


def pool_of(name: str) -> heads.Pool:
  """How the original pools scores, by its name; 'mix', the larger of both, is the maximum too."""
  return 'mean' if name == 'avg' else 'max'


@adapters.register_adapter('mit', 'cam_heads')
def _activations(manifest: Manifest) -> adapters.Adapter:
  """How many classes there are, the heads say: both modalities have as many tokens of classes."""
  shapes = {entry['key']: entry['shape'] for entry in manifest['state']}
  classes = shapes['cls_head_3d.weight'][0]

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    encoded = nn.relu(inputs['voxel_tokens'][:, classes:])
    cams = module(inputs['pooled_feat'][None], encoded, inputs['view_tokens'][None])
    outputs = {name: jnp.swapaxes(x, 1, 2) for name, x in cams.items()}
    for how in ('avg', 'max', 'mix'):
      for name, x in cams.items():
        outputs[f'{name}_{how}'] = heads.pool_scores(x, pool_of(how))
    return outputs

  return adapters.module_adapter(manifest, _Heads(classes), rules=rules.ACTIVATION_HEADS, call=call)


@adapters.register_adapter('mit', 'supervoxel_pool')
def _pool(manifest: Manifest) -> adapters.Adapter:
  del manifest

  def run(variables: Any, inputs: Arrays) -> tuple[Arrays, Arrays]:
    del variables
    ids, feats = inputs['ids'], inputs['feats'][None]
    members = supervoxels.membership(ids[None], ids.max() + 1)
    means = supervoxels.pool(feats, members)
    outputs = {
      'pooled': means[0],
      'empty': ~members[0].any(axis=0),
      'unpooled': supervoxels.unpool(means, members)[0],
      'consistency': supervoxels.inconsistency(feats, means, members),
    }
    return outputs, {}

  return adapters.Adapter(run, static=frozenset(['ids']))
