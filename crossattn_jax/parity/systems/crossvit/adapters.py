"""Recorded cases of CrossViT: whole classifiers, and their parts one by one."""

from collections.abc import Callable, Mapping
import math
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
from crossattn_jax.parity import adapters, arguments, score_scale
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


# The official blocks of a branch keep their scale: `qk_scale` is of what fuses the branches.
_FUSING = '(.*/)?fusion/(.*/)?attention/'


def _told(manifest: Manifest) -> dict[str, Any]:
  """What keys and shapes tell of an original, where its constructor is silent."""
  shapes = {
    entry['key'].removeprefix('model.'): tuple(entry['shape']) for entry in manifest['state']
  }
  told = {'qkv_bias': any(key.endswith(('qkv.bias', 'wq.bias')) for key in shapes)}
  kernels = {multi_conv: f'patch_embed.0.proj{".0" * multi_conv}.weight' for multi_conv in (0, 1)}
  for multi_conv, key in kernels.items():
    if key in shapes:
      told |= {'in_chans': shapes[key][1], 'multi_conv': bool(multi_conv)}
  if 'head.0.weight' in shapes:
    told['num_classes'] = shapes['head.0.weight'][0]
  return told


def _pair(side: int | tuple[int, int]) -> tuple[int, int]:
  return (side, side) if isinstance(side, int) else tuple(side)


def _model(manifest: Manifest) -> crossvit.CrossViT:
  """Builds the model of an official constructor, or of timm's."""
  c = manifest['constructor']
  name = c.get('model', 'crossvit_tiny_240')
  base = registry.create_model(name)
  told = _told(manifest)
  fields = {
    field: c.get(argument, told.get(argument, getattr(base, field)))
    for argument, field in _FIELDS.items()
  }
  # One ratio more than branches: the last one is unused.
  fields['mlp_ratios'] = c.get('mlp_ratio', base.mlp_ratios)[: len(fields['widths'])]
  multi_conv = c.get('multi_conv', told.get('multi_conv', base.patch_embedding == 'conv'))
  fields['patch_embedding'] = 'conv' if multi_conv else 'linear'
  if manifest['module'] == 'timm.CrossVit':
    fields['image_size'] = _pair(c.get('img_size', base.image_size))
    fields['branch_scales'] = c.get('img_scale', base.branch_scales)
    fields['resize'] = 'center_crop' if c.get('crop_scale', False) else 'bicubic'
    fields['global_pool'] = c.get('global_pool', base.global_pool)
    c.ignore_rates('pos_drop_rate', 'proj_drop_rate')
  else:
    # One side per branch, or one for all; the first one is the natural input's.
    sizes = c.get('img_size', base.branch_sizes())
    sizes = (sizes,) * len(fields['widths']) if isinstance(sizes, int) else sizes
    sizes = tuple(map(_pair, sizes))
    fields |= {'image_size': sizes[0], 'branch_image_sizes': sizes}
    token_blocks = {'t2t': 't2t', 'performer': 'performer'}
    backbone = c.get('hybrid_backbone', token_blocks.get(base.patch_embedding))
    if backbone is not None:
      fields['patch_embedding'] = token_blocks.get(backbone, 'performer')
  c.ignore_rates('drop_rate', 'attn_drop_rate', 'drop_path_rate')
  return registry.create_model(name, **fields)


def _classify(manifest: Manifest, model: nn.Module, image: jax.Array) -> Arrays:
  """The logits and what else the model shows: of a branch, its tokens, attention."""
  # The performer's dropout has no argument; no case has any.
  train = manifest['mode'] == 'train' and model.patch_embedding != 'performer'
  logits, features = model(channels_last(image), train)
  official = manifest['module'] != 'timm.CrossVit'
  if official and model.num_classes == 0 and len(set(model.widths)) == 1:
    # In place of logits it has the mean of its branches' vectors, not each of them.
    logits = sum(jnp.split(logits, len(model.widths), axis=-1)) / len(model.widths)
  return {'logits': logits, **features}


@adapters.register_adapter('crossvit', 'CrossViT')
@score_scale.takes_scale(_FUSING)
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
@score_scale.takes_scale(_FUSING)
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
  c.ignore_rates('drop', 'proj_drop', 'attn_drop', 'drop_path')
  return crossvit.options.BlockOptions(
    qkv_bias=c.get('qkv_bias', _told(manifest)['qkv_bias']), norm_epsilon=c.get('norm_eps', 1e-6)
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
@score_scale.takes_scale(_FUSING)
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


def _fusion_adapter(manifest: Manifest, fusion: str, module: nn.Module) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('common_dim', only=(max(c['dims']),))
  grids = tuple(map(tuple, c['grids']))
  for grid, (name, entry) in zip(grids, manifest['inputs'].items(), strict=True):
    if math.prod(grid) != entry['shape'][1] - 1:
      raise arguments.ArgumentError(
        f'crossvit, fusion: of grids={grids} that of {name} is not of its {entry["shape"][1]} '
        'tokens, of which one is of the class'
      )
  return adapters.module_adapter(
    manifest, module, rules=crossvit_rules.FUSIONS[fusion], call=_token_sets(manifest, grids)
  )


@adapters.register_adapter('crossvit', 'fusion_all_attention')
@score_scale.takes_scale()
def _all_attention(manifest: Manifest) -> adapters.Adapter:
  heads = tuple(manifest['constructor']['num_heads'])
  module = crossvit.fusion.AllAttentionFusion(heads, 0.0, _options(manifest))
  return _fusion_adapter(manifest, 'all_attention', module)


def _sum_fusion(pairwise: bool) -> Callable[[Manifest], adapters.Adapter]:
  def make(manifest: Manifest) -> adapters.Adapter:
    manifest['constructor'].ignore('num_heads', 'qk_scale')
    module = crossvit.fusion.SumFusion(pairwise, _options(manifest))
    return _fusion_adapter(manifest, 'pairwise' if pairwise else 'class_token', module)

  return make


adapters.register_adapter('crossvit', 'fusion_class_token')(_sum_fusion(False))
adapters.register_adapter('crossvit', 'fusion_pairwise')(_sum_fusion(True))


@adapters.register_adapter('crossvit', 'transformer_block')
@score_scale.takes_scale()
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
    taps={'attn': 'attention', 'attn.qkv': ('attention/qkv', crossvit_rules.side_by_side)},
  )


@adapters.register_adapter('crossvit', 'cross_attention_block')
@score_scale.takes_scale()
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
@score_scale.takes_scale()
def _cross_attention(manifest: Manifest) -> adapters.Adapter:
  """In the form that computes keys and values."""
  c = manifest['constructor']
  c.ignore('dim')
  c.ignore_rates('attn_drop', 'proj_drop')
  merged_heads = crossvit_rules.merged_heads
  return adapters.module_adapter(
    manifest,
    cross_attention.ClassTokenAttention(
      c.get('num_heads', 8), c.get('qkv_bias', _told(manifest)['qkv_bias']), form='projected'
    ),
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
    taps={'proj': ('conv' if kind == 'linear' else 'conv_2', channels_first), **taps},
  )


@adapters.register_adapter('crossvit', 't2t')
def _tokens_to_token(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('img_size', 'in_chans')
  tokens_type = 'performer' if _has(manifest, 'attention1.w') else 'transformer'
  performer = c.get('tokens_type', tokens_type) == 'performer'
  c.ignore('tokens_type', only=('transformer', 'performer'))
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
