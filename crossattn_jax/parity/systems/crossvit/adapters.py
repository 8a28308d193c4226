"""Recorded cases of CrossViT: whole classifiers, and their parts one by one."""

from collections.abc import Callable, Mapping
from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import cross_attention
from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.mapping import prefixed
from crossattn_jax.conversion.systems import crossvit as crossvit_rules
from crossattn_jax.models import crossvit, registry
from crossattn_jax.models.crossvit import patch_embedding
from crossattn_jax.models.parts.types import Grid
from crossattn_jax.parity import adapters
from crossattn_jax.tasks import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# Arguments of both originals -> fields of the model, whose value is meant where a case is silent.
_FIELDS = {
  'num_classes': 'num_classes',
  'in_chans': 'num_channels',
  'patch_size': 'patch_sizes',
  'embed_dim': 'widths',
  'depth': 'depths',
  'num_heads': 'num_heads',
  'qkv_bias': 'qkv_bias',
  'norm_eps': 'norm_epsilon',
  'fusion': 'fusion',
}


def _pair(side: int | tuple[int, int]) -> tuple[int, int]:
  return (side, side) if isinstance(side, int) else tuple(side)


def _model(manifest: Manifest) -> crossvit.CrossViT:
  """Builds the model of an official constructor, or of timm's."""
  c = manifest['constructor']
  name = c.get('model', 'crossvit_tiny_240')
  base = registry.create_model(name)
  fields = {field: c.get(argument, getattr(base, field)) for argument, field in _FIELDS.items()}
  # One ratio more than branches: the last one is unused.
  fields['mlp_ratios'] = c.get('mlp_ratio', base.mlp_ratios)[: len(fields['widths'])]
  multi_conv = c.get('multi_conv', base.patch_embedding == 'conv')
  fields['patch_embedding'] = 'conv' if multi_conv else 'linear'
  if manifest['module'] == 'timm.CrossVit':
    fields['image_size'] = _pair(c.get('img_size', base.image_size))
    fields['branch_scales'] = c.get('img_scale', base.branch_scales)
    fields['resize'] = 'center_crop' if c.get('crop_scale', False) else 'bicubic'
    fields['global_pool'] = c.get('global_pool', base.global_pool)
    c.ignore_rates('pos_drop_rate', 'proj_drop_rate')
  else:
    # One side per branch; the first one is the natural input's.
    sizes = tuple(map(_pair, c.get('img_size', base.branch_sizes())))
    fields |= {'image_size': sizes[0], 'branch_image_sizes': sizes}
    token_blocks = {'t2t': 't2t', 'performer': 'performer'}
    backbone = c.get('hybrid_backbone', token_blocks.get(base.patch_embedding))
    if backbone is not None:
      fields['patch_embedding'] = token_blocks.get(backbone, 'performer')
    c.ignore('qk_scale', only=(None,))
  c.ignore_rates('drop_rate', 'attn_drop_rate', 'drop_path_rate')
  return registry.create_model(name, **fields)


def _classify(manifest: Manifest, model: nn.Module, image: jax.Array) -> Arrays:
  """The logits and what else the model shows: of a branch, its tokens, attention."""
  # The performer's dropout has no argument; no case has any.
  train = manifest['mode'] == 'train' and model.patch_embedding != 'performer'
  logits, features = model(channels_last(image), train)
  return {'logits': logits, **features}


@adapters.register_adapter('crossvit', 'CrossViT')
@adapters.register_adapter('crossvit', 'timm.CrossVit')
def _classifier(manifest: Manifest) -> adapters.Adapter:
  module = _model(manifest)
  return adapters.module_adapter(
    manifest,
    module,
    rules=crossvit_rules.model_rules(module),
    call=lambda model, inputs: _classify(manifest, model, inputs['image']),
    taps=crossvit_rules.model_taps(module),
  )


@adapters.register_adapter('crossvit', 'CrossViT+loss')
def _classifier_and_loss(manifest: Manifest) -> adapters.Adapter:
  """With soft targets, or integer labels whose cross entropy is smoothed."""
  module, smoothing = _model(manifest), manifest['constructor'].get('smoothing', 0.1)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    outputs = _classify(manifest, model, inputs['image'])
    (target,) = (x for name, x in inputs.items() if name != 'image')
    if jnp.issubdtype(target.dtype, jnp.integer):
      loss = losses.label_smoothing_cross_entropy(outputs['logits'], target, smoothing)
    else:
      loss = losses.soft_target_cross_entropy(outputs['logits'], target)
    return {'loss': loss.mean(), **outputs}

  return adapters.module_adapter(
    manifest,
    module,
    rules=prefixed(crossvit_rules.model_rules(module), 'model.'),
    call=call,
    taps={f'model.{name}': tap for name, tap in crossvit_rules.model_taps(module).items()},
  )


# Parts of a model.


def _options(manifest: Manifest) -> crossvit.options.BlockOptions:
  """What all blocks of a constructor have in common."""
  c = manifest['constructor']
  c.ignore('qk_scale', only=(None,))
  c.ignore_rates('drop', 'proj_drop', 'attn_drop', 'drop_path')
  return crossvit.options.BlockOptions(
    qkv_bias=c.get('qkv_bias', True), norm_epsilon=c.get('norm_eps', 1e-6)
  )


def _train(manifest: Manifest) -> bool:
  return manifest['mode'] == 'train'


def _has(manifest: Manifest, key: str) -> bool:
  return any(entry['key'] == key for entry in manifest['state'])


def _token_sets(
  manifest: Manifest, grids: tuple[Grid, ...]
) -> Callable[[nn.Module, Arrays], Arrays]:
  """Returns a `call` from one token set per branch, in the case's order, to as many: y0, y1, ...

  Of two branches the results are called small and large, too.
  """

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    tokens = tuple(inputs[name] for name in manifest['inputs'])
    tokens, _ = module(tokens, grids, _train(manifest))
    outputs = {f'y{d}': x for d, x in enumerate(tokens)}
    return outputs | (
      dict(zip(('small', 'large'), tokens, strict=True)) if len(tokens) == 2 else {}
    )

  return call


@adapters.register_adapter('crossvit', 'multiscale_block')
def _encoder(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  branches, depths = len(c['dim']), tuple(c['depth'])
  c.ignore('patches')
  module = crossvit.encoder.MultiScaleEncoder(
    depths,
    tuple(c['num_heads']),
    tuple(c['mlp_ratio'][:branches]),
    drop_path_rates=(0.0,) * max(depths),
    options=_options(manifest),
  )
  return adapters.module_adapter(
    manifest,
    module,
    rules=crossvit_rules.encoder_rules('cross_attention'),
    call=_token_sets(manifest, grids=()),
    taps=crossvit_rules.encoder_taps(module, depths),
  )


def _fusion_adapter(
  manifest: Manifest,
  fusion: str,
  make: Callable[[tuple[int, ...], crossvit.options.BlockOptions], nn.Module],
) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('common_dim', only=(max(c['dims']),))
  module = make(tuple(c['num_heads']), _options(manifest))
  grids = tuple(map(tuple, c['grids']))
  return adapters.module_adapter(
    manifest, module, rules=crossvit_rules.FUSIONS[fusion], call=_token_sets(manifest, grids)
  )


@adapters.register_adapter('crossvit', 'fusion_all_attention')
def _all_attention(manifest: Manifest) -> adapters.Adapter:
  make = lambda heads, options: crossvit.fusion.AllAttentionFusion(heads, 0.0, options)
  return _fusion_adapter(manifest, 'all_attention', make)


@adapters.register_adapter('crossvit', 'fusion_class_token')
def _class_token_fusion(manifest: Manifest) -> adapters.Adapter:
  make = lambda heads, options: crossvit.fusion.SumFusion(False, options)
  return _fusion_adapter(manifest, 'class_token', make)


@adapters.register_adapter('crossvit', 'fusion_pairwise')
def _pairwise_fusion(manifest: Manifest) -> adapters.Adapter:
  make = lambda heads, options: crossvit.fusion.SumFusion(True, options)
  return _fusion_adapter(manifest, 'pairwise', make)


@adapters.register_adapter('crossvit', 'transformer_block')
def _transformer_block(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('dim')
  return adapters.module_adapter(
    manifest,
    crossvit.encoder.TransformerBlock(
      c['num_heads'], c.get('mlp_ratio', 4), 0.0, _options(manifest)
    ),
    rules=crossvit_rules.TRANSFORMER_BLOCK,
    call=lambda module, inputs: {'y': module(inputs['x'], _train(manifest))},
    taps={'attn': 'attention'},
  )


@adapters.register_adapter('crossvit', 'cross_attention_block')
def _cross_attention_block(manifest: Manifest) -> adapters.Adapter:
  """In the form that `auto` takes."""
  c = manifest['constructor']
  c.ignore('dim')
  mlp_ratio, has_mlp = c.get('mlp_ratio', 4), c.get('has_mlp', _has(manifest, 'mlp.fc1.weight'))
  return adapters.module_adapter(
    manifest,
    crossvit.fusion.CrossAttentionBlock(
      c['num_heads'], 0.0, _options(manifest), mlp_ratio if has_mlp else None
    ),
    rules=crossvit_rules.CROSS_ATTENTION_BLOCK,
    call=lambda module, inputs: {'y': module(inputs['x'], _train(manifest))[0]},
    taps={'attn': ('attention', lambda result: result[0])},
  )


@adapters.register_adapter('crossvit', 'cross_attention')
def _cross_attention(manifest: Manifest) -> adapters.Adapter:
  """In the form that computes keys and values."""
  c = manifest['constructor']
  c.ignore('dim')
  c.ignore('qk_scale', only=(None,))
  c.ignore_rates('attn_drop', 'proj_drop')
  merged_heads = crossvit_rules.merged_heads
  return adapters.module_adapter(
    manifest,
    cross_attention.ClassTokenAttention(c['num_heads'], c.get('qkv_bias', True), form='projected'),
    rules=crossvit_rules.CLASS_TOKEN_ATTENTION,
    call=lambda module, inputs: {'y': module(inputs['x'], _train(manifest))[0]},
    taps={
      'wq': ('query', crossvit_rules.query_token),
      'wk': ('key', merged_heads),
      'wv': ('value', merged_heads),
    },
  )


@adapters.register_adapter('crossvit', 'patch_embed')
def _patch_embedding(manifest: Manifest) -> adapters.Adapter:
  """Of one or three convolutions."""
  c = manifest['constructor']
  c.ignore('img_size', 'in_chans')
  if c.get('multi_conv', _has(manifest, 'proj.0.weight')):
    kind, module_class = 'conv', patch_embedding.ConvPatchEmbedding
  else:
    kind, module_class = 'linear', patch_embedding.LinearPatchEmbedding
  taps = {f'proj.{2 * i}': (f'conv_{i}', channels_first) for i in range(3)}
  return adapters.module_adapter(
    manifest,
    module_class(c['patch_size'], c['embed_dim']),
    rules=crossvit_rules.PATCH_EMBEDDINGS[kind],
    call=lambda module, inputs: {'tokens': module(channels_last(inputs['image']))},
    taps={'proj': ('conv', channels_first), **taps},
  )


@adapters.register_adapter('crossvit', 't2t')
def _tokens_to_token(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('img_size', 'in_chans')
  c.ignore('tokens_type', only=('transformer', 'performer'))
  performer = c['tokens_type'] == 'performer'
  module = crossvit.tokens_to_token.TokensToToken(
    c['patch_size'],
    c['embed_dim'],
    performer=performer,
    token_channels=c.get('token_dim', 64),
  )

  def unfolded(windows: jax.Array) -> jax.Array:
    return rearrange(windows, 'b h w c -> b c (h w)')

  return adapters.module_adapter(
    manifest,
    module,
    rules=crossvit_rules.PATCH_EMBEDDINGS['performer' if performer else 't2t'],
    # Without the performer's dropout, which no case has.
    call=lambda module, inputs: {'tokens': module(channels_last(inputs['image']))},
    taps={
      'soft_split0': ('soft_split_0', unfolded),
      'soft_split1': ('soft_split_1', unfolded),
      'soft_split2': ('soft_split_2', unfolded),
      'attention1': 'token_block_1',
      'attention2': 'token_block_2',
      'project': 'project',
    },
  )
