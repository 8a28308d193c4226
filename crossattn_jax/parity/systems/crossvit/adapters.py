"""CrossViT and its PyTorch originals: IBM/CrossViT (on timm 0.4.12) and timm's own `CrossVit`."""

from collections.abc import Mapping, Sequence
from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import cross_attention
from crossattn_jax.data.classification import mixing
from crossattn_jax.layers import patch_embedding, resize
from crossattn_jax.models import crossvit, registry
from crossattn_jax.parity import adapters
from crossattn_jax.parity.layouts import channels_first, channels_last
from crossattn_jax.parity.mapping import Rule, prefixed
from crossattn_jax.parity.rules import affine, norm
from crossattn_jax.tasks import losses
from crossattn_jax.training import schedules

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


# The correspondence of names, from the inside out.


SELF_ATTENTION = [
  *affine('qkv', 'qkv', 'qkv'),
  *affine('proj', 'out', 'linear_heads_in'),
]
CLASS_TOKEN_ATTENTION = [
  *affine('wq', 'query', 'linear_heads_out'),
  *affine('wk', 'key', 'linear_heads_out'),
  *affine('wv', 'value', 'linear_heads_out'),
  *affine('proj', 'out', 'linear_heads_in'),
]
_NORMS_AND_MLP = [
  *norm('norm{n:1|2}', 'norm{n}'),
  *affine('mlp.fc{n:1|2}', 'mlp/fc{n}', 'linear'),
]
TRANSFORMER_BLOCK = [*_NORMS_AND_MLP, *prefixed(SELF_ATTENTION, 'attn.', 'attention/')]
CROSS_ATTENTION_BLOCK = [*_NORMS_AND_MLP, *prefixed(CLASS_TOKEN_ATTENTION, 'attn.', 'attention/')]
PROJECTIONS = [
  *norm('projs.{d}.0', 'projection_{d}/norm'),
  *affine('projs.{d}.2', 'projection_{d}/linear', 'linear'),
  *norm('revert_projs.{d}.0', 'back_projection_{d}/norm'),
  *affine('revert_projs.{d}.2', 'back_projection_{d}/linear', 'linear'),
]
FUSIONS = {
  'cross_attention': [
    *PROJECTIONS,
    *prefixed(CROSS_ATTENTION_BLOCK, 'fusion.{d}.', 'cross_attention_{d}/'),
    *prefixed(CROSS_ATTENTION_BLOCK, 'fusion.{d}.{j}.', 'cross_attention_{d}_{j}/'),
  ],
  'all_attention': [
    *PROJECTIONS,
    *norm('norm1', 'norm'),
    *prefixed(SELF_ATTENTION, 'attn.', 'attention/'),
  ],
  'class_token': PROJECTIONS,
  'pairwise': PROJECTIONS,
  'none': [],
}
_TOKEN_TRANSFORMER = [
  *_NORMS_AND_MLP,
  Rule('attn.qkv.weight', 'qkv/kernel', 'qkv'),
  *affine('attn.proj', 'out', 'linear_heads_in'),
]
_TOKEN_PERFORMER = [
  *norm('norm{n:1|2}', 'norm{n}'),
  Rule('w', 'directions', collection='constants'),
  *affine('kqv', 'kqv', 'linear_heads_out'),
  *affine('proj', 'out', 'linear'),
  *affine('mlp.0', 'mlp/fc1', 'linear'),
  *affine('mlp.2', 'mlp/fc2', 'linear'),
]
PATCH_EMBEDDINGS = {
  'linear': affine('proj', 'conv', 'conv'),
  'conv': [
    *affine('proj.0', 'conv_0', 'conv'),
    *affine('proj.2', 'conv_1', 'conv'),
    *affine('proj.4', 'conv_2', 'conv'),
  ],
  't2t': [
    *prefixed(_TOKEN_TRANSFORMER, 'attention{b:1|2}.', 'token_block_{b}/'),
    *affine('project', 'project', 'linear'),
  ],
  'performer': [
    *prefixed(_TOKEN_PERFORMER, 'attention{b:1|2}.', 'token_block_{b}/'),
    *affine('project', 'project', 'linear'),
  ],
}


def encoder_rules(fusion: str) -> list[Rule]:
  """The rules of one multi-scale encoder."""
  # The other fusions were recorded under a name of their own.
  prefix = '' if fusion == 'cross_attention' else 'fuse.'
  return [
    *prefixed(TRANSFORMER_BLOCK, 'blocks.{d}.{i}.', 'branch_{d}/block_{i}/'),
    *prefixed(FUSIONS[fusion], prefix, 'fusion/'),
  ]


def model_rules(module: crossvit.CrossViT) -> list[Rule]:
  """The rules of a whole model, in the official spelling and in timm's."""
  return [
    *prefixed(
      PATCH_EMBEDDINGS[module.patch_embedding], 'patch_embed.{d}.', 'embedding_{d}/patch_embedding/'
    ),
    Rule('pos_embed.{d}', 'embedding_{d}/position_embedding'),
    Rule('pos_embed_{d}', 'embedding_{d}/position_embedding', spelling='timm'),
    Rule('cls_token.{d}', 'embedding_{d}/class_token'),
    Rule('cls_token_{d}', 'embedding_{d}/class_token', spelling='timm'),
    *prefixed(encoder_rules(module.fusion), 'blocks.{k}.', 'encoder_{k}/'),
    *norm('norm.{d}', 'norm_{d}'),
    *affine('head.{d}', 'head_{d}', 'linear'),
  ]


# Where the original's submodules are found, and in which layout.


def _merged_heads(x: jax.Array) -> jax.Array:
  return rearrange(x, 'b n h d -> b n (h d)')


def _query_token(x: jax.Array) -> jax.Array:
  return rearrange(x, 'b h d -> b 1 (h d)')


def _cross_attention_taps(torch: str, flax: str) -> dict[str, adapters.TapLike | None]:
  """The taps of a cross-attention block, which returns the class token and its weights."""
  return {
    torch: (flax, lambda result: result[0]),
    f'{torch}.attn': (f'{flax}/attention', lambda result: result[0]),
    f'{torch}.attn.wq': (f'{flax}/attention/query', _query_token),
    # Keys and values are not computed in the folded form.
    f'{torch}.attn.wk': None,
    f'{torch}.attn.wv': None,
  }


def encoder_taps(
  module: crossvit.encoder.MultiScaleEncoder | crossvit.CrossViT, depths: Sequence[int]
) -> dict[str, adapters.TapLike | None]:
  """The taps of one multi-scale encoder with `depths` as in `MultiScaleEncoder`."""
  *branch_depths, fusion_depth = depths
  taps = {}
  for d, depth in enumerate(branch_depths):
    taps[f'blocks.{d}'] = f'branch_{d}'
    for i in range(depth):
      taps[f'blocks.{d}.{i}.attn.qkv'] = (
        f'branch_{d}/block_{i}/attention/qkv',
        lambda parts: jnp.concatenate(parts, axis=-1),
      )
    if module.fusion != 'cross_attention':
      continue
    taps[f'projs.{d}'] = f'fusion/projection_{d}'
    taps[f'revert_projs.{d}'] = f'fusion/back_projection_{d}'
    if fusion_depth == 0:
      taps |= _cross_attention_taps(f'fusion.{d}', f'fusion/cross_attention_{d}')
    for j in range(fusion_depth):
      taps |= _cross_attention_taps(f'fusion.{d}.{j}', f'fusion/cross_attention_{d}_{j}')
    if fusion_depth:
      last = f'fusion/cross_attention_{d}_{fusion_depth - 1}'
      taps[f'fusion.{d}'] = (last, lambda result: result[0])
  return taps


def model_taps(module: crossvit.CrossViT) -> dict[str, adapters.TapLike | None]:
  """The taps of a whole model."""
  taps = {}
  for d in range(len(module.widths)):
    embedding = f'embedding_{d}/patch_embedding'
    taps[f'patch_embed.{d}'] = embedding
    taps[f'norm.{d}'] = f'norm_{d}'
    if module.patch_embedding == 'linear':
      taps[f'patch_embed.{d}.proj'] = (f'{embedding}/conv', channels_first)
    elif module.patch_embedding == 'conv':
      for i in range(3):
        taps[f'patch_embed.{d}.proj.{2 * i}'] = (f'{embedding}/conv_{i}', channels_first)
  for k, depths in enumerate(module.depths):
    for torch, tap in encoder_taps(module, depths).items():
      if isinstance(tap, tuple):
        tap = (f'encoder_{k}/{tap[0]}', tap[1])
      elif tap is not None:
        tap = f'encoder_{k}/{tap}'
      taps[f'blocks.{k}.{torch}'] = tap
  return taps


@adapters.register_models('crossvit', 'crossvit_*')
def describe(module: crossvit.CrossViT) -> adapters.ModelParity:
  """Says how a registered CrossViT corresponds to the official model and to timm's."""
  branches = range(len(module.widths))
  image = jax.ShapeDtypeStruct((1, module.num_channels, *module.image_size), jnp.float32)
  return adapters.ModelParity(
    rules=model_rules(module),
    call=lambda model, inputs: {'logits': model(channels_last(inputs['image']))[0]},
    inputs={'image': image},
    taps=model_taps(module),
    heads=[f'head_{d}' for d in branches] if module.num_classes else (),
    position_embeddings={f'embedding_{d}/position_embedding': d for d in branches},
  )


# Whole models.


def _model(constructor: Mapping[str, Any]) -> nn.Module:
  """Builds the model of an official or timm constructor; what it leaves out is the tiny model's."""
  fields = {}
  for argument, value in constructor.items():
    match argument:
      case 'model':
        continue
      case 'hybrid_backbone':
        fields['patch_embedding'] = 't2t' if value == 't2t' else 'performer'
      case 'mlp_ratio':
        fields['mlp_ratios'] = value[: len(constructor['embed_dim'])]  # the last one is unused
      case 'crop_scale':
        fields['resize'] = 'center_crop' if value else 'bicubic'
      case 'attn_drop_rate':
        fields['attention_drop_rate'] = value
      case _:
        renamed = {
          'embed_dim': 'widths',
          'depth': 'depths',
          'patch_size': 'patch_sizes',
          'img_size': 'image_size',
          'img_scale': 'branch_scales',
        }
        fields[renamed.get(argument, argument)] = value
  return registry.create_model(constructor.get('model', 'crossvit_tiny_240'), **fields)


@adapters.register_adapter('crossvit', 'CrossViT')
@adapters.register_adapter('crossvit', 'timm.CrossVit')
def model_adapter(manifest: Manifest) -> adapters.Adapter:
  """A whole classifier."""
  module = _model(manifest['constructor'])
  parity = describe(module)
  return adapters.module_adapter(
    manifest, module, rules=parity.rules, call=parity.call, taps=parity.taps
  )


@adapters.register_adapter('crossvit', 'CrossViT+loss')
def model_and_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """A classifier in training mode, and its soft-target cross entropy."""
  module = _model(manifest['constructor'])

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    logits, _ = model(channels_last(inputs['image']), train=True)
    return {'loss': losses.soft_target_cross_entropy(logits, inputs['target']).mean(keepdims=True)}

  return adapters.module_adapter(
    manifest, module, rules=prefixed(model_rules(module), 'model.'), call=call
  )


# Parts of a model.


@adapters.register_adapter('crossvit', 'multiscale_block')
def encoder_adapter(manifest: Manifest) -> adapters.Adapter:
  """One multi-scale encoder."""
  constructor = manifest['constructor']
  branches = len(constructor['dim'])
  depths = tuple(constructor['depth'])
  module = crossvit.encoder.MultiScaleEncoder(
    depths=depths,
    num_heads=tuple(constructor['num_heads']),
    mlp_ratios=tuple(constructor['mlp_ratio'][:branches]),
    drop_path_rates=(constructor['drop_path'],) * max(depths),
    options=crossvit.options.BlockOptions(qkv_bias=constructor['qkv_bias']),
  )
  return adapters.module_adapter(
    manifest,
    module,
    rules=encoder_rules('cross_attention'),
    call=_token_sets_call(manifest, grids=()),
    taps=encoder_taps(module, depths),
  )


def _token_sets_call(manifest: Manifest, grids: tuple[crossvit.options.Grid, ...]):
  """Returns a `call` whose inputs and outputs are one token set per branch, by the case's names."""
  names_in = list(manifest['inputs'])
  names_out = [name.removeprefix('out/') for name in manifest['shapes'] if name.startswith('out/')]

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    tokens, _ = module(tuple(inputs[name] for name in names_in), grids)
    return dict(zip(names_out, tokens, strict=True))

  return call


def _fusion_adapter(manifest: Manifest, module: nn.Module, fusion: str) -> adapters.Adapter:
  grids = tuple(tuple(grid) for grid in manifest['constructor']['grids'])
  call = _token_sets_call(manifest, grids)
  return adapters.module_adapter(manifest, module, rules=FUSIONS[fusion], call=call)


@adapters.register_adapter('crossvit', 'fusion_all_attention')
def all_attention_adapter(manifest: Manifest) -> adapters.Adapter:
  """All-attention fusion."""
  heads = tuple(manifest['constructor']['num_heads'])
  module = crossvit.fusion.AllAttentionFusion(heads, 0.0, crossvit.options.BlockOptions())
  return _fusion_adapter(manifest, module, 'all_attention')


@adapters.register_adapter('crossvit', 'fusion_class_token')
def class_token_fusion_adapter(manifest: Manifest) -> adapters.Adapter:
  """Class-token fusion."""
  module = crossvit.fusion.SumFusion(False, crossvit.options.BlockOptions())
  return _fusion_adapter(manifest, module, 'class_token')


@adapters.register_adapter('crossvit', 'fusion_pairwise')
def pairwise_fusion_adapter(manifest: Manifest) -> adapters.Adapter:
  """Pairwise fusion."""
  module = crossvit.fusion.SumFusion(True, crossvit.options.BlockOptions())
  return _fusion_adapter(manifest, module, 'pairwise')


@adapters.register_adapter('crossvit', 'transformer_block')
def transformer_block_adapter(manifest: Manifest) -> adapters.Adapter:
  """A standard transformer block."""
  constructor = manifest['constructor']
  options = crossvit.options.BlockOptions(qkv_bias=constructor['qkv_bias'])
  return adapters.module_adapter(
    manifest,
    crossvit.encoder.TransformerBlock(
      constructor['num_heads'], constructor['mlp_ratio'], 0.0, options
    ),
    rules=TRANSFORMER_BLOCK,
    call=lambda module, inputs: {'y': module(inputs['x'])},
    taps={'attn': 'attention'},
  )


@adapters.register_adapter('crossvit', 'cross_attention_block')
def cross_attention_block_adapter(manifest: Manifest) -> adapters.Adapter:
  """A cross-attention block, in the folded form."""
  constructor = manifest['constructor']
  options = crossvit.options.BlockOptions(qkv_bias=constructor['qkv_bias'])
  mlp_ratio = constructor['mlp_ratio'] if constructor['has_mlp'] else None
  return adapters.module_adapter(
    manifest,
    crossvit.fusion.CrossAttentionBlock(constructor['num_heads'], 0.0, options, mlp_ratio),
    rules=CROSS_ATTENTION_BLOCK,
    call=lambda module, inputs: {'y': module(inputs['x'])[0]},
  )


@adapters.register_adapter('crossvit', 'cross_attention')
def cross_attention_adapter(manifest: Manifest) -> adapters.Adapter:
  """The cross-attention alone, in the form that computes keys and values."""
  constructor = manifest['constructor']
  return adapters.module_adapter(
    manifest,
    cross_attention.ClassTokenAttention(
      constructor['num_heads'], constructor['qkv_bias'], form='projected'
    ),
    rules=CLASS_TOKEN_ATTENTION,
    call=lambda module, inputs: {'y': module(inputs['x'])[0]},
    taps={
      'wq': ('query', _query_token),
      'wk': ('key', _merged_heads),
      'wv': ('value', _merged_heads),
    },
  )


@adapters.register_adapter('crossvit', 'patch_embed')
def patch_embedding_adapter(manifest: Manifest) -> adapters.Adapter:
  """A patch embedding of one or three convolutions."""
  constructor = manifest['constructor']
  if constructor['multi_conv']:
    kind, module_class = 'conv', patch_embedding.ConvPatchEmbedding
  else:
    kind, module_class = 'linear', patch_embedding.LinearPatchEmbedding
  return adapters.module_adapter(
    manifest,
    module_class(constructor['patch_size'], constructor['embed_dim']),
    rules=PATCH_EMBEDDINGS[kind],
    call=lambda module, inputs: {'tokens': module(channels_last(inputs['image']))},
    taps={f'proj.{2 * i}': (f'conv_{i}', channels_first) for i in range(3)},
  )


@adapters.register_adapter('crossvit', 't2t')
def tokens_to_token_adapter(manifest: Manifest) -> adapters.Adapter:
  """A tokens-to-token embedding."""
  constructor = manifest['constructor']
  performer = constructor['tokens_type'] == 'performer'
  module = crossvit.tokens_to_token.TokensToToken(
    constructor['patch_size'],
    constructor['embed_dim'],
    performer=performer,
    token_channels=constructor['token_dim'],
  )

  def unfolded(windows: jax.Array) -> jax.Array:
    return rearrange(windows, 'b h w c -> b c (h w)')

  return adapters.module_adapter(
    manifest,
    module,
    rules=PATCH_EMBEDDINGS['performer' if performer else 't2t'],
    call=lambda module, inputs: {'tokens': module(channels_last(inputs['image']))},
    taps={
      'soft_split0': ('soft_split_0', unfolded),
      'soft_split1': ('soft_split_1', unfolded),
      'attention1': 'token_block_1',
      'attention2': 'token_block_2',
      'project': 'project',
    },
  )


# Functions.


@adapters.register_adapter('crossvit', 'resize_bicubic')
def resize_adapter(manifest: Manifest) -> adapters.Adapter:
  """Bicubic image resizing; input and output names correspond in order."""
  sizes = {
    name.removeprefix('out/'): shape[2:]
    for name, shape in manifest['shapes'].items()
    if name.startswith('out/')
  }

  def resize_all(**images: jax.Array) -> Arrays:
    return {
      result: channels_first(resize.resize(channels_last(images[name]), size))
      for name, (result, size) in zip(manifest['inputs'], sizes.items(), strict=True)
    }

  return adapters.function_adapter(resize_all, jit=True)


@adapters.register_adapter('crossvit', 'pos_embed_resize')
def position_embedding_adapter(manifest: Manifest) -> adapters.Adapter:
  """Position-embedding resizing between the grids that the case's notes state."""
  del manifest

  def resize_both(p: jax.Array, q: jax.Array) -> Arrays:
    return {
      'p34': resize.resize_position_embedding(p, (20, 20), (34, 34)),
      'q': resize.resize_position_embedding(q, (3, 5), (4, 7)),
    }

  return adapters.function_adapter(resize_both, jit=True)


@adapters.register_adapter('crossvit', 'loss_soft_target_ce')
def soft_target_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """Soft-target cross entropy."""
  del manifest
  return adapters.function_adapter(
    lambda logits, target: {
      'loss': losses.soft_target_cross_entropy(logits, target).mean(keepdims=True)
    }
  )


@adapters.register_adapter('crossvit', 'loss_label_smoothing_ce')
def label_smoothing_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """Label smoothing with 0.1, and plain cross entropy."""
  del manifest
  return adapters.function_adapter(
    lambda logits, labels: {
      'ls': losses.label_smoothing_cross_entropy(logits, labels, 0.1).mean(keepdims=True),
      'ce': losses.cross_entropy(logits, labels).mean(keepdims=True),
    }
  )


@adapters.register_adapter('crossvit', 'mixup_target')
def mixup_target_adapter(manifest: Manifest) -> adapters.Adapter:
  """Smoothed targets of a batch mixed with its reverse, as the case's notes state them."""
  del manifest
  return adapters.function_adapter(
    lambda labels: {'target': mixing.mixup_targets(labels, num_classes=10, lam=0.3, smoothing=0.1)}
  )


@adapters.register_adapter('crossvit', 'lr_schedule')
def schedule_adapter(manifest: Manifest) -> adapters.Adapter:
  """The learning rate of every epoch of the official recipe."""
  epochs, steps_per_epoch = manifest['shapes']['out/paper'][0], 1251

  def rates(base: float, warmup_epochs: int) -> jax.Array:
    config = schedules.default_config()
    config.minimum = 1e-5
    config.warmup_epochs = warmup_epochs
    config.warmup_start = 1e-6
    config.decay_after_warmup = False
    config.per_epoch = True
    config.epochs_late = 1
    schedule = schedules.create_schedule(
      config, base_lr=base, total_steps=epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch
    )
    return schedule(jnp.arange(epochs) * steps_per_epoch)

  return adapters.function_adapter(
    lambda: {
      'paper': rates(0.004, 30),
      'default_b4096': rates(5e-4 * 4096 / 512, 5),
      'default_b2048': rates(5e-4 * 2048 / 512, 5),
    }
  )
