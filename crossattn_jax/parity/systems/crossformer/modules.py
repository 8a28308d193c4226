"""Cases of single modules of CrossFormer: blocks, a stage, attention, embeddings."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import dynamic_position_bias, long_short_distance
from crossattn_jax.conversion.layouts import as_tokens, channels_last
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.systems import crossformer as rules
from crossattn_jax.kernels.grouped import reference
from crossattn_jax.models import crossformer
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.crossformer import adapters as models
from crossattn_jax.parity.systems.crossformer import options

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


# Blocks.


def _ignore_what_changes_nothing(c: arguments.Arguments) -> None:
  c.ignore_rates('drop', 'attn_drop', 'drop_path')
  c.ignore('num_patch_size', 'use_checkpoint', 'norm_layer', 'downsample')


def _attention(
  c: arguments.Arguments, group_size: int, rows: int | None = None, **fields: Any
) -> options.BuildAttention:
  """Builds the attention of an original's block.

  Args:
    c: the block's, or the stage's.
    group_size: of this block.
    rows: of the map, of which a classifier's adaptive interval is; a dense predictor's is of the
      longer side.
    **fields: further ones.
  """
  if rows is None:
    # Dense predictors take these words, too, and do nothing with them.
    c.ignore('pad_type', 'no_mask')
  interval, adaptive = c.get('interval', 8), c.get('adaptive_interval', False)
  if adaptive and rows is not None:
    interval, adaptive = -(-rows // group_size), False
  build = functools.partial(
    long_short_distance.LongShortDistanceAttention,
    c['num_heads'],
    group_size=group_size,
    interval=interval,
    adaptive_interval=adaptive,
    center_padding=rows is not None and c.get('pad_type', 0) == 1,
    mask_padding=rows is None or not c.get('no_mask', False),
    qkv_bias=c.get('qkv_bias', True),
    scale=c.get('qk_scale') or None,
    **fields,
  )
  return options.by_rows(build) if c.get('use_cpe', False) else build


def block_rules(c: arguments.Arguments) -> list[Rule]:
  """The rules of a block, with or without a convolution over the rows."""
  return [*rules.BLOCK, *(rules.ROW_CONVOLUTION if c.get('use_cpe', False) else ())]


def _block_adapter(
  manifest: Manifest,
  size: Sequence[int],
  build: Callable[..., options.BuildAttention],
  prefix: str = '',
) -> adapters.Adapter:
  """The adapter of a block of either network; `build` makes its attention, given some fields."""
  c = manifest['constructor']
  _ignore_what_changes_nothing(c)
  c.ignore('dim', only=(manifest['inputs']['x']['shape'][2],))
  kind = long_short_distance.KINDS[c.get('lsda_flag', 0)]
  cools = any(entry['key'] == f'{prefix}ex_conv.weight' for entry in manifest['state'])
  module = crossformer.Block(
    build(c, c.get('group_size', 7), kind=kind),
    c.get('mlp_ratio', 4),
    cooling=c.get('use_extra_conv', cools),
  )

  def call(block: nn.Module, inputs: Arrays) -> Arrays:
    x = rearrange(inputs['x'], 'b (h w) c -> b h w c', h=size[0])
    return {'y': as_tokens(block(x)[0])}

  return adapters.module_adapter(
    manifest, module, rules=prefixed(block_rules(c), prefix), call=call
  )


@adapters.register_adapter('crossformer', 'block')
def _block(manifest: Manifest) -> adapters.Adapter:
  size = manifest['constructor']['input_resolution']
  return _block_adapter(manifest, size, functools.partial(_attention, rows=size[0]))


@adapters.register_adapter('crossformer', 'dense_block')
def _dense_block(manifest: Manifest) -> adapters.Adapter:
  c, lda = manifest['constructor'], models.long_distance(manifest)
  small_map = 'pad' if lda == 'region' else 'shrink'
  build = functools.partial(_attention, lda=lda, small_map=small_map)
  return _block_adapter(manifest, (c['H'], c['W']), build, 'block.')


class _StageAndEmbedding(nn.Module):
  """What the original calls a stage."""

  build_stage: Callable[..., crossformer.Stage]
  build_embedding: Callable[..., crossformer.CrossScaleEmbedding] | None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x, _ = self.build_stage(name='stage')(x)
    return x if self.build_embedding is None else self.build_embedding(name='downsampling')(x)


@adapters.register_adapter('crossformer', 'stage')
def _stage(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  _ignore_what_changes_nothing(c)
  depth, dim, size, cools = c['depth'], c['dim'], c['input_resolution'], c.get('use_acl', False)
  sizes = c.get('group_size', 7)
  sizes = sizes if isinstance(sizes, Sequence) else [sizes] * depth
  kernels = tuple(c.get('patch_size_end', (2, 4)))
  attentions = tuple(
    _attention(c, sizes[i], size[0], kind=long_short_distance.KINDS[i % 2]) for i in range(depth)
  )
  build_stage = functools.partial(
    crossformer.Stage,
    attentions,
    tuple(cools and i % 3 == 2 and i < depth - 1 for i in range(depth)),
    (0.0,) * depth,
    c.get('mlp_ratio', 4),
  )
  build_embedding = functools.partial(
    crossformer.CrossScaleEmbedding,
    crossformer.channel_shares(2 * dim, len(kernels)),
    kernels,
    stride=2,
    norm_first=True,
  )
  ends = any(entry['key'].startswith('downsample.') for entry in manifest['state'])

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    x = rearrange(inputs['x'], 'b (h w) c -> b h w c', h=size[0])
    return {'y': as_tokens(module(x))}

  return adapters.module_adapter(
    manifest,
    _StageAndEmbedding(build_stage, build_embedding if ends else None),
    rules=[
      *prefixed(block_rules(c), 'blocks.{b}.', 'stage/block_{b}/'),
      *prefixed(rules.MERGING, 'downsample.', 'downsampling/'),
    ],
    call=call,
    taps={
      f'blocks.{b}': (f'stage/block_{b}', lambda result: as_tokens(result[0])) for b in range(depth)
    },
  )


# Attention.


class _GroupedAttention(nn.Module):
  """The attention of one group size, without the cutting of a map."""

  num_heads: int
  group: tuple[int, int]
  scale: float | None
  qkv_bias: bool
  position_bias: bool

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Maps `[batch, groups, tokens, channels]`; the mask is `[groups, 1, queries, keys]`."""
    heads, channels = self.num_heads, x.shape[-1]
    heads_shape = (3, heads, channels // heads)
    qkv = nn.DenseGeneral(heads_shape, use_bias=self.qkv_bias, name='qkv')(x)
    bias = jnp.zeros((), x.dtype)
    if self.position_bias:
      table = dynamic_position_bias.DynamicPositionBias(
        heads, channels // 4 // 4, name='position_bias'
      )(dynamic_position_bias.relative_offsets(self.group))
      bias = dynamic_position_bias.relative_position_bias(table)
    # The bias is the heads', the mask the groups'.
    out = reference.attend(*jnp.moveaxis(qkv, 3, 0), bias + mask, scale=self.scale)
    return nn.DenseGeneral(channels, axis=(-2, -1), name='out')(out)


@adapters.register_adapter('crossformer', 'attention_cls')
@adapters.register_adapter('crossformer', 'attention_dense')
def _attention_in_groups(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore_rates('attn_drop', 'proj_drop')
  c.ignore('dim', only=(manifest['inputs']['x']['shape'][2],))
  # Dense predictors say the group when they call.
  called_with = c.get('called_with')
  if called_with is not None:
    c.ignore('group_size')
  module = _GroupedAttention(
    c['num_heads'],
    tuple(c['group_size'] if called_with is None else called_with),
    scale=c.get('qk_scale') or None,
    qkv_bias=c.get('qkv_bias', True),
    position_bias=c.get('position_bias', True),
  )

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    x = inputs['x']
    mask = inputs.get('mask', jnp.zeros((1, x.shape[1], x.shape[1]), x.dtype))
    out = module(rearrange(x, '(b g) n c -> b g n c', g=len(mask)), mask[:, None])
    return {'y': rearrange(out, 'b g n c -> (b g) n c')}

  return adapters.module_adapter(manifest, module, rules=rules.ATTENTION, call=call)


@adapters.register_adapter('crossformer', 'dpb')
def _position_bias(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('group')  # It made the offsets.
  module = dynamic_position_bias.DynamicPositionBias(
    c['num_heads'], c['dim'] // 4, c.get('residual', False)
  )
  return adapters.module_adapter(
    manifest,
    module,
    rules=rules.POSITION_BIAS,
    call=lambda bias, inputs: {'bias': bias(inputs['offsets'])},
  )


# Embeddings.


@adapters.register_adapter('crossformer', 'patch_embed')
@adapters.register_adapter('crossformer', 'patch_embed_dense')
def _stem(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('img_size', 'norm_layer')
  c.ignore('in_chans', only=(manifest['inputs']['image']['shape'][1],))
  kernels = tuple(c.get('patch_size', (4, 8, 16, 32)))
  module = crossformer.CrossScaleEmbedding(
    crossformer.channel_shares(c.get('embed_dim', 96), len(kernels)), kernels, stride=kernels[0]
  )
  return adapters.module_adapter(
    manifest,
    module,
    rules=rules.STEM,
    call=lambda embed, inputs: {'tokens': as_tokens(embed(channels_last(inputs['image'])))},
  )


@adapters.register_adapter('crossformer', 'patch_merging')
def _merging(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('num_input_patch_size', 'norm_layer')
  kernels, rows = tuple(c.get('patch_size', (2, 4))), c['input_resolution'][0]
  module = crossformer.CrossScaleEmbedding(
    crossformer.channel_shares(2 * c['dim'], len(kernels)), kernels, stride=2, norm_first=True
  )

  def call(embed: nn.Module, inputs: Arrays) -> Arrays:
    x = rearrange(inputs['x'], 'b (h w) c -> b h w c', h=rows)
    return {'y': as_tokens(embed(x))}

  return adapters.module_adapter(manifest, module, rules=rules.MERGING, call=call)
