"""CrossFormer, CrossFormer++ and their PyTorch original: cheerss/CrossFormer."""

from collections.abc import Mapping
from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.attention import dynamic_position_bias, long_short_distance
from crossattn_jax.data.classification import mixing
from crossattn_jax.kernels.grouped import reference
from crossattn_jax.models import crossformer
from crossattn_jax.parity import adapters
from crossattn_jax.parity.layouts import as_tokens, channels_first, channels_last
from crossattn_jax.parity.mapping import Rule, prefixed
from crossattn_jax.parity.rules import affine, norm
from crossattn_jax.tasks import losses
from crossattn_jax.training import schedules

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


# The correspondence of names, from the inside out.


POSITION_BIAS = [
  *affine('pos_proj', 'linear_0', 'linear'),
  *norm('pos{i:1|2|3}.0', 'norm_{i}'),
  *affine('pos{i:1|2|3}.2', 'linear_{i}', 'linear'),
]
ATTENTION = [
  *prefixed(POSITION_BIAS, 'pos.', 'position_bias/'),
  *affine('qkv', 'qkv', 'qkv'),
  *affine('proj', 'out', 'linear_heads_in'),
  # Buffers of the first release's files.
  Rule('biases', None),
  Rule('relative_position_index', None),
]
BLOCK = [
  *affine('cpe', 'row_convolution', 'conv'),
  *norm('norm_cpe', 'row_norm'),
  *norm('norm{n:1|2}', 'norm{n}'),
  *prefixed(ATTENTION, 'attn.', 'attention/'),
  *affine('mlp.fc{n:1|2}', 'mlp/fc{n}', 'linear'),
  *affine('ex_conv', 'cooling', 'conv'),
  *norm('ex_ln', 'cooling_norm'),
]
STEM = [*affine('projs.{i}', 'conv_{i}', 'conv'), *norm('norm', 'norm')]
MERGING = [*affine('reductions.{i}', 'conv_{i}', 'conv'), *norm('norm', 'norm')]


def model_rules(module: crossformer.CrossFormer) -> list[Rule]:
  """The rules of a whole model."""
  rules = [
    *prefixed(STEM, 'patch_embed.', 'embedding/'),
    *prefixed(BLOCK, 'layers.{s}.blocks.{b}.', 'stage_{s}/block_{b}/'),
  ]
  for stage in range(1, len(module.widths)):
    rules += prefixed(MERGING, f'layers.{stage - 1}.downsample.', f'downsampling_{stage}/')
  if module.backbone:
    # Dense predictors start from a classifier's weights.
    return [
      *rules,
      *(Rule(f'{name}.{part}', None) for name in ('norm', 'head') for part in ('weight', 'bias')),
    ]
  return [*rules, *norm('norm', 'norm'), *affine('head', 'head', 'linear')]


def model_taps(module: crossformer.CrossFormer) -> dict[str, adapters.TapLike | None]:
  """The taps of a whole model."""
  taps: dict[str, adapters.TapLike | None] = {
    'patch_embed': ('embedding', as_tokens),
    'norm': ('norm', as_tokens),
  }
  for s, depth in enumerate(module.depths):
    for b in range(depth):
      taps[f'layers.{s}.blocks.{b}'] = (f'stage_{s}/block_{b}', lambda result: as_tokens(result[0]))
    # A stage of the original ends with the embedding of the next.
    if s + 1 < len(module.depths):
      taps[f'layers.{s}'] = (f'downsampling_{s + 1}', as_tokens)
    else:
      taps[f'layers.{s}'] = (f'stage_{s}', lambda result: as_tokens(result[0]))
  return taps


@adapters.register_models('crossformer', 'crossformer_*')
def describe(module: crossformer.CrossFormer) -> adapters.ModelParity:
  """Says how a registered CrossFormer corresponds to the official model."""
  image = jax.ShapeDtypeStruct((1, module.num_channels, *module.image_size), jnp.float32)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    result, _ = model(channels_last(inputs['image']))
    if module.backbone:
      return {f'c{s + 2}': channels_first(x) for s, x in enumerate(result)}
    return {'logits': result}

  return adapters.ModelParity(
    rules=model_rules(module),
    call=call,
    inputs={'image': image},
    taps=model_taps(module),
    heads=('head',) if module.num_classes and not module.backbone else (),
  )


# Whole models.


def model_of(arguments: Mapping[str, Any], **fields: Any) -> crossformer.CrossFormer:
  """The model of an original's constructor."""
  width, stages = arguments['embed_dim'], len(arguments['depths'])
  return crossformer.CrossFormer(
    widths=tuple(width * 2**s for s in range(stages)),
    depths=tuple(arguments['depths']),
    head_dim=width // arguments['num_heads'][0],
    group_sizes=tuple(arguments['group_size']),
    intervals=tuple(arguments['crs_interval']),
    patch_sizes=tuple(arguments['patch_size']),
    merging_sizes=tuple(arguments['merge_size'][0]),
    cooling=arguments['use_acl'],
    **fields,
  )


def _model_adapter(manifest: Manifest, module: crossformer.CrossFormer) -> adapters.Adapter:
  described = describe(module)
  return adapters.module_adapter(
    manifest, module, rules=described.rules, call=described.call, taps=described.taps
  )


@adapters.register_adapter('crossformer', 'CrossFormer')
def model_adapter(manifest: Manifest) -> adapters.Adapter:
  """A whole classifier."""
  return _model_adapter(manifest, model_of(manifest['constructor']))


@adapters.register_adapter('crossformer', 'CrossFormerDense')
def backbone_adapter(manifest: Manifest) -> adapters.Adapter:
  """The backbone of a dense predictor."""
  lda = 'global' if 'Old branch' in manifest['notes'] else 'region'
  return _model_adapter(manifest, model_of(manifest['constructor'], backbone=True, lda=lda))


# Parts of a model.


def _attention(arguments: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
  """Fields of the attention module of an original's block."""
  return {
    'num_heads': arguments['num_heads'],
    'kind': long_short_distance.KINDS[arguments['lsda_flag']],
    'group_size': arguments['group_size'],
    'interval': arguments['interval'],
    'adaptive_interval': arguments.get('adaptive_interval', False),
    'center_padding': arguments.get('pad_type', 0) == 1,
    'mask_padding': not arguments.get('no_mask', False),
    **fields,
  }


def _block_adapter(
  manifest: Manifest, size: tuple[int, int], prefix: str = '', **fields: Any
) -> adapters.Adapter:
  arguments = manifest['constructor']
  rows = arguments.get('use_cpe', False)

  def attention(**naming: Any) -> nn.Module:
    return long_short_distance.LongShortDistanceAttention(
      **_attention(arguments, position_bias=not rows, **fields), **naming
    )

  module = crossformer.Block(
    attention, cooling=arguments.get('use_extra_conv', False), row_convolution=rows
  )

  def call(block: nn.Module, inputs: Arrays) -> Arrays:
    x = rearrange(inputs['x'], 'b (h w) c -> b h w c', h=size[0])
    return {'y': as_tokens(block(x)[0])}

  return adapters.module_adapter(manifest, module, rules=prefixed(BLOCK, prefix), call=call)


@adapters.register_adapter('crossformer', 'block')
def block_adapter(manifest: Manifest) -> adapters.Adapter:
  """A block of the classifier."""
  return _block_adapter(manifest, tuple(manifest['constructor']['input_resolution']))


@adapters.register_adapter('crossformer', 'dense_block')
def dense_block_adapter(manifest: Manifest) -> adapters.Adapter:
  """A block of the dense predictor's backbone."""
  arguments = manifest['constructor']
  whole = 'old branch' in manifest['notes']
  fields = {'lda': 'global'} if whole else {'small_map': 'pad'}
  return _block_adapter(manifest, (arguments['H'], arguments['W']), 'block.', **fields)


@adapters.register_adapter('crossformer', 'stage')
def stage_adapter(manifest: Manifest) -> adapters.Adapter:
  """A stage of the classifier, and the embedding that follows it."""
  arguments = manifest['constructor']
  depth, dim = arguments['depth'], arguments['dim']
  model = crossformer.CrossFormer(
    widths=(dim, 2 * dim),
    depths=(depth, 0),
    head_dim=dim // arguments['num_heads'],
    group_sizes=(arguments['group_size'][0], 1),
    intervals=(arguments['interval'], 1),
  )
  ends = arguments['use_acl']

  class StageAndEmbedding(nn.Module):
    """What the original calls a stage."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
      stage = crossformer.Stage(
        model.attentions(0),
        tuple(ends and i % 3 == 2 and i < depth - 1 for i in range(depth)),
        (0.0,) * depth,
        name='stage',
      )
      embedding = crossformer.CrossScaleEmbedding(
        (dim, dim), tuple(arguments['patch_size_end']), 2, norm_first=True, name='downsampling'
      )
      return embedding(stage(x)[0])

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    x = rearrange(inputs['x'], 'b (h w) c -> b h w c', h=arguments['input_resolution'][0])
    return {'y': as_tokens(module(x))}

  return adapters.module_adapter(
    manifest,
    StageAndEmbedding(),
    rules=[
      *prefixed(BLOCK, 'blocks.{b}.', 'stage/block_{b}/'),
      *prefixed(MERGING, 'downsample.', 'downsampling/'),
    ],
    call=call,
    taps={
      f'blocks.{b}': (f'stage/block_{b}', lambda result: as_tokens(result[0])) for b in range(depth)
    },
  )


@adapters.register_adapter('crossformer', 'attention_cls')
@adapters.register_adapter('crossformer', 'attention_dense')
def attention_adapter(manifest: Manifest) -> adapters.Adapter:
  """Attention within groups that are given as a batch."""
  arguments = manifest['constructor']
  group = tuple(arguments.get('called_with') or arguments['group_size'])
  heads, channels = arguments['num_heads'], arguments['dim']

  class GroupedAttention(nn.Module):
    """The attention of one group size, without the cutting of a map."""

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array | None) -> jax.Array:
      qkv = nn.DenseGeneral((3, heads, channels // heads), name='qkv')(x)
      table = dynamic_position_bias.DynamicPositionBias(
        heads, channels // 4 // 4, name='position_bias'
      )(dynamic_position_bias.relative_offsets(group))
      bias = dynamic_position_bias.relative_position_bias(table)
      out = reference.attend(*jnp.moveaxis(qkv, 3, 0), bias, real)
      return nn.DenseGeneral(channels, axis=(-2, -1), name='out')(out)

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    # Masks are of keys: equal for all queries.
    real = inputs['mask'][:, 0] == 0 if 'mask' in inputs else None
    groups = 1 if real is None else len(real)
    out = module(rearrange(inputs['x'], '(b g) n c -> b g n c', g=groups), real)
    return {'y': rearrange(out, 'b g n c -> (b g) n c')}

  return adapters.module_adapter(manifest, GroupedAttention(), rules=ATTENTION, call=call)


@adapters.register_adapter('crossformer', 'dpb')
def position_bias_adapter(manifest: Manifest) -> adapters.Adapter:
  """Dynamic position bias."""
  arguments = manifest['constructor']
  module = dynamic_position_bias.DynamicPositionBias(
    arguments['num_heads'], arguments['dim'] // 4, arguments['residual']
  )
  return adapters.module_adapter(
    manifest,
    module,
    rules=POSITION_BIAS,
    call=lambda bias, inputs: {'bias': bias(inputs['offsets'])},
  )


@adapters.register_adapter('crossformer', 'patch_embed')
@adapters.register_adapter('crossformer', 'patch_embed_dense')
def stem_adapter(manifest: Manifest) -> adapters.Adapter:
  """The first cross-scale embedding."""
  arguments = manifest['constructor']
  kernels = tuple(arguments['patch_size'])
  module = crossformer.CrossScaleEmbedding(
    crossformer.channel_shares(arguments['embed_dim'], len(kernels)), kernels, 4
  )
  return adapters.module_adapter(
    manifest,
    module,
    rules=STEM,
    call=lambda embed, inputs: {'tokens': as_tokens(embed(channels_last(inputs['image'])))},
  )


@adapters.register_adapter('crossformer', 'patch_merging')
def merging_adapter(manifest: Manifest) -> adapters.Adapter:
  """A cross-scale embedding between stages."""
  arguments = manifest['constructor']
  kernels = tuple(arguments['patch_size'])
  module = crossformer.CrossScaleEmbedding(
    crossformer.channel_shares(2 * arguments['dim'], len(kernels)), kernels, 2, norm_first=True
  )

  def call(embed: nn.Module, inputs: Arrays) -> Arrays:
    x = rearrange(inputs['x'], 'b (h w) c -> b h w c', h=arguments['input_resolution'][0])
    return {'y': as_tokens(embed(x))}

  return adapters.module_adapter(manifest, module, rules=MERGING, call=call)


# Functions.


@adapters.register_adapter('crossformer', 'pgs_group_sizes')
def group_sizes_adapter(manifest: Manifest) -> adapters.Adapter:
  """Progressive group sizes, by rule and depths."""
  names = [name.removeprefix('out/') for name in manifest['shapes']]

  def sizes(name: str) -> jax.Array:
    rule, depths = name.split('/depths_')
    per_stage = (7, 7, 14, 7) if rule == '7_14' else (4, 4, 14, 7)
    of_stages = crossformer.group_sizes_of_blocks(
      rule, per_stage, [int(depth) for depth in depths.split('_')], resolution=56
    )
    return jnp.asarray(np.concatenate(of_stages), jnp.result_type(float))

  return adapters.function_adapter(lambda: {name: sizes(name) for name in names})


@adapters.register_adapter('crossformer', 'lr_schedules')
def schedules_adapter(manifest: Manifest) -> adapters.Adapter:
  """The learning rates of the official recipes at the recorded steps."""
  del manifest
  # name: base rate, steps, steps per epoch, fields, and the recorded steps
  recipes = {
    'cosine': (
      1e-3,
      300 * 40,
      40,
      {
        'minimum': 1e-5,
        'warmup_start': 1e-6,
        'warmup_epochs': 20,
        'decay_after_warmup': False,
      },
      (0, 1, 2, 399, 400, 799, 800, 801, 1200, 3000, 6000, 9000, 11999, 12000, 12001),
    ),
    'poly_upernet': (
      6e-5,
      160_000,
      1,
      {
        'name': 'polynomial',
        'warmup': 'of_schedule',
        'warmup_steps': 1500,
        'warmup_start': 6e-11,
        'decay_after_warmup': False,
      },
      (0, 1, 100, 749, 1499, 1500, 1501, 80_000, 159_999),
    ),
    'poly_fpn': (
      1e-4,
      80_000,
      1,
      {'name': 'polynomial', 'power': 0.9},
      (0, 1, 100, 40_000, 79_999),
    ),
    'step_det': (
      1e-4,
      12 * 7330,
      7330,
      {
        'name': 'step',
        'boundary_epochs': (8, 11),
        'warmup': 'of_schedule',
        'warmup_steps': 500,
        'warmup_start': 1e-7,
        'decay_after_warmup': False,
      },
      (0, 1, 250, 499, 500, 501, 58_639, 58_640, 80_629, 80_630, 87_959),
    ),
  }

  def run() -> Arrays:
    outputs = {}
    for name, (base, total, per_epoch, fields, steps) in recipes.items():
      config = schedules.default_config()
      config.update(fields)
      schedule = schedules.create_schedule(
        config, base_lr=base, total_steps=total, steps_per_epoch=per_epoch
      )
      outputs[f'{name}/steps'] = jnp.asarray(steps, jnp.result_type(float))
      outputs[f'{name}/lr'] = schedule(jnp.asarray(steps))
    return outputs

  return adapters.function_adapter(run)


@adapters.register_adapter('crossformer', 'loss_soft_target_ce')
def soft_target_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """Soft-target cross entropy."""
  del manifest
  return adapters.function_adapter(
    lambda logits, target: {
      'loss': losses.soft_target_cross_entropy(logits, target).mean(keepdims=True)
    }
  )


@adapters.register_adapter('crossformer', 'loss_label_smoothing_ce')
def label_smoothing_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """Label smoothing with 0.1."""
  del manifest
  return adapters.function_adapter(
    lambda logits, labels: {
      'loss': losses.label_smoothing_cross_entropy(logits, labels, 0.1).mean(keepdims=True)
    }
  )


@adapters.register_adapter('crossformer', 'loss_mixup_soft_ce')
def mixup_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """Cross entropy against smoothed labels of a batch mixed with its reverse."""
  del manifest

  def run(logits: jax.Array, labels: jax.Array) -> Arrays:
    # The original makes its targets in float32, whatever the logits are.
    target = mixing.mixup_targets(labels, logits.shape[-1], 0.37, 0.1, jnp.float32)
    target = target.astype(logits.dtype)
    loss = losses.soft_target_cross_entropy(logits, target).mean(keepdims=True)
    return {'loss': loss, 'target': target}

  return adapters.function_adapter(run)
