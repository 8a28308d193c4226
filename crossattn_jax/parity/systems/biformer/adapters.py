"""BiFormer and its PyTorch original: rayleizhu/BiFormer."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import bi_level_routing, global_attention
from crossattn_jax.data.classification import mixing
from crossattn_jax.layers import linear
from crossattn_jax.models import biformer, registry
from crossattn_jax.parity import adapters, cases, layouts
from crossattn_jax.parity.layouts import channels_first, channels_last
from crossattn_jax.parity.mapping import Rule, prefixed
from crossattn_jax.parity.rules import affine, batch_norm
from crossattn_jax.tasks import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# Outputs that were recorded beside the result, and are no part of what was differentiated.
_LOOKED_AT = ('attn', 'route_logit', 'route_weight', 'full_attention')


# The correspondence of names, from the inside out.


def _affine(torch: str, flax: str, layout: str, pointwise: bool = False) -> list[Rule]:
  """The rules of a linear map, which the original may keep as a convolution."""
  return affine(torch, flax, layouts.pointwise(layout) if pointwise else layout)


def routed_rules(split_heads: bool = True) -> list[Rule]:
  """The rules of bi-level routing attention in NHWC.

  Args:
    split_heads: whether queries and keys are as wide as values, so that Flax keeps them as heads.
  """
  return [
    *_affine('qkv.qkv', 'qkv', 'qkv' if split_heads else 'linear'),
    *_affine('router.emb', 'router/embedding', 'linear'),
    *_affine('lepe', 'lepe', 'conv'),
    *_affine('wo', 'out', 'linear_heads_in'),
  ]


ROUTED_NCHW = [
  *_affine('qkv_linear', 'qkv', 'qkv', pointwise=True),
  *_affine('lepe', 'lepe', 'conv'),
  *_affine('output_linear', 'out', 'linear_heads_in', pointwise=True),
]
CONVOLUTION = [
  *_affine('1', 'linear_0', 'linear', pointwise=True),
  *_affine('2', 'depthwise', 'conv'),
  *_affine('3', 'linear_1', 'linear', pointwise=True),
]
BLOCK_GRID = [
  *_affine('qkv', 'qkv', 'qkv', pointwise=True),
  Rule('rel_pos.relative_position_bias_table', 'relative_position_bias'),
  *_affine('proj', 'out', 'linear_heads_in', pointwise=True),
]


def global_rules(pointwise: bool = False) -> list[Rule]:
  """The rules of global attention; `pointwise` in NCHW."""
  return [
    *_affine('qkv', 'qkv', 'qkv', pointwise),
    *_affine('proj', 'out', 'linear_heads_in', pointwise),
    *_affine('lepe', 'lepe', 'conv'),
  ]


def block_rules(module: biformer.BiFormer, stage: int = 0) -> list[Rule]:
  """The rules of a block of one stage."""
  options = module.options
  kind, nchw = options.attentions[stage], options.torch_linear
  match kind:
    case 'routed':
      same = options.qk_dims is None or options.qk_dims[stage] == options.widths[stage]
      attention = ROUTED_NCHW if nchw else routed_rules(same)
    case 'convolution':
      attention = CONVOLUTION
    case 'block_grid':
      attention = BLOCK_GRID
    case _:
      attention = global_rules(nchw)
  if kind == 'block_grid':
    mlp = _affine('mlp.fc{n:1|2}', 'mlp/fc{n}', 'linear', pointwise=True)
  else:
    mlp = [
      *_affine('mlp.0', 'mlp/fc1', 'linear', nchw),
      *_affine('mlp.1.dwconv', 'mlp/depthwise', 'conv'),
      *_affine('mlp.3' if options.overlapping else 'mlp.2', 'mlp/fc2', 'linear', nchw),
    ]
  return [
    Rule('gamma{n:1|2}', 'scale{n}'),
    *_affine('pos_embed', 'position', 'conv'),
    *batch_norm('norm{n:1|2}', 'norm{n}'),
    *prefixed(attention, 'attn.', 'attention/'),
    *mlp,
  ]


def model_rules(module: biformer.BiFormer) -> list[Rule]:
  """The rules of a whole model."""
  if module.options.overlapping:
    rules = [
      *_affine('downsample_layers.0.0', 'stem/conv_0', 'conv'),
      *batch_norm('downsample_layers.0.1', 'stem/norm_0'),
      *_affine('downsample_layers.0.3', 'stem/conv_1', 'conv'),
      *batch_norm('downsample_layers.0.4', 'stem/norm_1'),
      *_affine('downsample_layers.{s}.0', 'downsampling_{s}/conv', 'conv'),
      *batch_norm('downsample_layers.{s}.1', 'downsampling_{s}/norm'),
    ]
  else:
    rules = [
      *_affine('downsample_layers.0.0', 'stem/conv', 'conv'),
      *batch_norm('downsample_layers.0.1', 'stem/norm'),
      *batch_norm('downsample_layers.{s}.0', 'downsampling_{s}/norm'),
      *_affine('downsample_layers.{s}.1', 'downsampling_{s}/conv', 'conv'),
    ]
  blocks = '' if module.options.overlapping else 'blocks.'
  for stage in range(len(module.options.widths)):
    rules += prefixed(
      block_rules(module, stage), f'stages.{stage}.{blocks}{{b}}.', f'stage_{stage}/block_{{b}}/'
    )
  return [
    *rules,
    *batch_norm('extra_norms.{s}', 'output_norm_{s}'),
    *batch_norm('norm', 'norm'),
    *_affine('head', 'head', 'linear'),
  ]


def model_taps(module: biformer.BiFormer) -> dict[str, adapters.TapLike | None]:
  """The taps of a whole model."""
  taps: dict[str, adapters.TapLike | None] = {'norm': ('norm', channels_first)}
  for s, depth in enumerate(module.options.depths):
    taps[f'downsample_layers.{s}'] = (f'downsampling_{s}' if s else 'stem', channels_first)
    taps[f'stages.{s}'] = (f'stage_{s}', lambda result: channels_first(result[0]))
    blocks = f'stages.{s}.' if module.options.overlapping else f'stages.{s}.blocks.'
    for b in range(depth):
      taps[f'{blocks}{b}'] = (f'stage_{s}/block_{b}', lambda result: channels_first(result[0]))
  return taps


@adapters.register_models('biformer', 'biformer_*')
@adapters.register_models('biformer', 'maxvit_stl')
def describe(module: biformer.BiFormer) -> adapters.ModelParity:
  """Says how a registered BiFormer corresponds to the official model."""
  image = jax.ShapeDtypeStruct((1, module.num_channels, *module.image_size), jnp.float32)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    result, _ = model(channels_last(inputs['image']))
    if module.options.backbone:
      return {f'c{s + 2}': channels_first(x) for s, x in enumerate(result)}
    return {'logits': result}

  return adapters.ModelParity(
    rules=model_rules(module),
    call=call,
    inputs={'image': image},
    taps=model_taps(module),
    heads=('head',) if module.num_classes and not module.options.backbone else (),
  )


# What the original's constructors say.


def _kv_pooling(arguments: Mapping[str, Any]) -> str:
  return {
    'identity': 'none',
    'avgpool': 'average',
    'maxpool': 'max',
    'ada_avgpool': 'adaptive_average',
    'ada_maxpool': 'adaptive_max',
  }[arguments.get('kv_downsample_mode') or 'identity']


def _routing(arguments: Mapping[str, Any]) -> str:
  flags = ('param_routing', 'diff_routing', 'soft_routing')
  return {
    (False, False, False): 'hard',
    (False, False, True): 'soft',
    (False, True, True): 'soft_differentiable',
    (True, True, True): 'soft_parametric',
  }[tuple(bool(arguments.get(flag)) for flag in flags)]


def _attention_kind(top_k: int) -> str:
  return {0: 'convolution', -1: 'global', -2: 'global_lepe'}.get(top_k, 'routed')


def _routed_attention(arguments: Mapping[str, Any]) -> bi_level_routing.BiLevelRoutingAttention:
  """The attention module of an NHWC constructor."""
  pooling = _kv_pooling(arguments)
  adaptive = pooling.startswith('adaptive')
  return bi_level_routing.BiLevelRoutingAttention(
    num_heads=arguments['num_heads'],
    regions_per_side=arguments['n_win'],
    top_k=arguments['topk'],
    qk_dim=arguments.get('qk_dim'),
    scale=arguments.get('qk_scale'),
    lepe_side=arguments.get('side_dwconv', 3),
    routing=_routing(arguments),
    padding='input' if arguments.get('auto_pad') else 'none',
    kv_pooling=pooling,
    kv_pool_size=arguments.get('kv_per_win' if adaptive else 'kv_downsample_ratio') or 1,
    output_projection=arguments.get('param_attention', 'qkvo') == 'qkvo',
  )


def _one_block_model(arguments: Mapping[str, Any], **fields: Any) -> biformer.BiFormer:
  """A model of a single stage, for the options of its block."""
  kind = _attention_kind(arguments.get('topk', 0))
  return biformer.BiFormer(
    biformer.Options(
      **{
        'widths': (arguments['dim'],),
        'depths': (1,),
        'attentions': (kind,),
        'top_k': (max(arguments.get('topk', 0), 0),),
        'regions_per_side': (arguments.get('n_win', 7),),
        'kv_pool_sizes': (1,),
        'qk_dims': (arguments.get('qk_dim') or arguments['dim'],),
        'mlp_ratio': arguments.get('mlp_ratio', 4),
        'lepe_side': arguments.get('side_dwconv', 5),
        **fields,
      }
    )
  )


def _block(model: biformer.BiFormer, index: int = 0) -> biformer.Block:
  options = model.options
  return biformer.Block(options.stage_attentions(0)[index], 0.0, options)


# Whole models.


def _sorted_regions(
  regions: jax.Array, model: biformer.BiFormer, stage: int, size: tuple[int, int]
) -> jax.Array:
  """Ascending, and -1 for regions of padding only, which are all alike."""
  grid, region_size = bi_level_routing.region_grid(
    size, model.options.regions_per_side[stage], model.options.padding
  )
  row, column = regions // grid[1] * region_size[0], regions % grid[1] * region_size[1]
  real = (row < size[0]) & (column < size[1])
  return jnp.sort(jnp.where(real, regions, -1), axis=-1)


def recorded_routing(features: Mapping[str, jax.Array], model: biformer.BiFormer) -> Arrays:
  """The chosen regions of a model's features, as they were recorded, by 'STAGE.BLOCK'."""
  blocks = '' if model.options.overlapping else 'blocks.'
  chosen = {}
  for name, regions in features.items():
    if name.startswith('routing/'):
      _, stage, block = name.split('/')
      size = features[f'stage_{stage}'].shape[1:3]
      chosen[f'{stage}.{blocks}{block}'] = _sorted_regions(regions, model, int(stage), size)
  return chosen


def _model_adapter(manifest: Manifest, module: biformer.BiFormer) -> adapters.Adapter:
  train = manifest['mode'] == 'train'
  rules = model_rules(module)
  wanted = {name.removeprefix('out/') for name in manifest['shapes'] if name.startswith('out/')}

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    result, features = model(channels_last(inputs['image']), train)
    if module.options.backbone:
      outputs = {f'c{s + 2}': channels_first(x) for s, x in enumerate(result)}
    else:
      outputs = {'logits': result}
    for key, regions in recorded_routing(features, module).items():
      outputs[f'route/stages.{key}'] = regions
    return {name: output for name, output in outputs.items() if name in wanted}

  adapter = adapters.module_adapter(
    manifest,
    module,
    rules=rules,
    call=call,
    taps=model_taps(module),
    statistic='bn_after/{}'.format,
  )
  return _with_recorded_statistics(manifest, adapter) if train else adapter


def _with_recorded_statistics(manifest: Manifest, adapter: adapters.Adapter) -> adapters.Adapter:
  """Starts from the running statistics that the recorder started from.

  The manifest says that they are of the case's seed, but those after the recorded step are, to the
  last digit of float32, nine tenths of the statistics of seed 0 plus a tenth of the batch's: the
  recorder drew the parameters anew and not the statistics. In training mode nothing else depends on
  them.
  """
  statistics = adapter.mapping.only('batch_stats')
  keys = {entry.torch_key for entry in statistics.entries}
  recorded = statistics.to_flax(
    {
      entry['key']: cases.generate(
        0,
        entry['key'],
        entry['shape'],
        mean=entry['mean'],
        std=entry['std'],
        abs=entry.get('abs', False),
      )
      for entry in manifest['state']
      if entry['key'] in keys
    }
  )

  def run(variables: Mapping[str, Any], inputs: Arrays) -> tuple[Arrays, Arrays]:
    start = jax.tree.map(
      lambda new, old: jnp.asarray(new, old.dtype),
      recorded['batch_stats'],
      variables['batch_stats'],
    )
    return adapter.run({**variables, 'batch_stats': start}, inputs)

  return dataclasses.replace(adapter, run=run)


@adapters.register_adapter('biformer', 'BiFormer')
@adapters.register_adapter('biformer', 'BiFormerSTL')
@adapters.register_adapter('biformer', 'BiFormerSTL_nchw')
@adapters.register_adapter('biformer', 'MaxViTSTL')
def model_adapter(manifest: Manifest) -> adapters.Adapter:
  """A whole classifier."""
  arguments = manifest['constructor']
  fields = {'padding': 'input'} if arguments.get('auto_pad') else {}
  return _model_adapter(manifest, registry.create_model(arguments['variant'], **fields))


@adapters.register_adapter('biformer', 'BiFormer.features')
def backbone_adapter(manifest: Manifest) -> adapters.Adapter:
  """The backbone of a dense predictor."""
  arguments = manifest['constructor']
  pooling = _kv_pooling(arguments)
  stages = len(arguments['depth'])
  scale = arguments['layer_scale_init_value']
  options = biformer.Options(
    backbone=True,
    widths=tuple(arguments['embed_dim']),
    depths=tuple(arguments['depth']),
    attentions=tuple(_attention_kind(top_k) for top_k in arguments['topks']),
    top_k=tuple(max(top_k, 0) for top_k in arguments['topks']),
    regions_per_side=(arguments['n_win'],) * stages,
    padding='input' if arguments['auto_pad'] else 'none',
    qk_dims=tuple(arguments['qk_dims']),
    head_dim=arguments['head_dim'],
    lepe_side=arguments['side_dwconv'],
    kv_pooling=pooling,
    kv_pool_sizes=tuple(max(size, 1) for size in arguments['kv_per_wins']),
    mlp_ratios=tuple(arguments['mlp_ratios']),
    position_conv=bool(arguments['before_attn_dwconv']),
    pre_norm=arguments['pre_norm'],
    layer_scale=scale if scale > 0 else None,
  )
  return _model_adapter(manifest, biformer.BiFormer(options))


# Parts of a model.


def _block_adapter(
  manifest: Manifest, model: biformer.BiFormer, index: int = 0
) -> adapters.Adapter:
  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    out, regions = module(channels_last(inputs['x']))
    outputs = {'y': channels_first(out)}
    if 'out/route/attn' in manifest['shapes']:
      size = out.shape[1:3]
      outputs['route/attn'] = _sorted_regions(regions, model, 0, size)
    return outputs

  return adapters.module_adapter(
    manifest, _block(model, index), rules=block_rules(model), call=call
  )


@adapters.register_adapter('biformer', 'block')
def block_adapter(manifest: Manifest) -> adapters.Adapter:
  """A BiFormer block."""
  arguments = manifest['constructor']
  layer_scale = arguments.get('layer_scale_init_value', -1)
  pooling = _kv_pooling(arguments)
  model = _one_block_model(
    arguments,
    head_dim=(arguments.get('qk_dim') or arguments['dim']) // arguments['num_heads'],
    padding='input' if arguments.get('auto_pad') else 'none',
    routing=_routing(arguments),
    qk_scale=arguments.get('qk_scale'),
    kv_pooling=pooling,
    kv_pool_sizes=(max(arguments.get('kv_per_win', 1), 1),),
    output_projection=arguments.get('param_attention', 'qkvo') == 'qkvo',
    position_conv=bool(arguments.get('before_attn_dwconv', 3)),
    mlp_depthwise=arguments.get('mlp_dwconv', False),
    pre_norm=arguments.get('pre_norm', True),
    layer_scale=layer_scale if layer_scale > 0 else None,
  )
  return _block_adapter(manifest, model)


@adapters.register_adapter('biformer', 'stl_block_nchw')
def stl_block_adapter(manifest: Manifest) -> adapters.Adapter:
  """A block of biformer_stl_nchw."""
  arguments = manifest['constructor']
  model = _one_block_model(
    arguments,
    head_dim=arguments['dim'] // arguments['num_heads'],
    padding='qkv',
    overlapping=False,
    position_conv=False,
    torch_linear=True,
  )
  return _block_adapter(manifest, model)


@adapters.register_adapter('biformer', 'maxvit_stl_block_attention')
@adapters.register_adapter('biformer', 'maxvit_stl_grid_attention')
def maxvit_block_adapter(manifest: Manifest) -> adapters.Adapter:
  """A block of maxvit_stl; those with grid attention are the second, fourth, ... of a stage."""
  arguments = manifest['constructor']
  model = _one_block_model(
    arguments,
    depths=(2,),
    attentions=('block_grid',),
    window=arguments['window'],
    overlapping=False,
    position_conv=False,
    norm_epsilon=1e-5,
  )
  index = ('block', 'grid').index(arguments['partition_type'])
  return _block_adapter(manifest, model, index)


def _routed_attention_adapter(
  manifest: Manifest,
  module: bi_level_routing.BiLevelRoutingAttention,
  rules: list[Rule],
  to_nhwc: Callable[[jax.Array], jax.Array],
  from_nhwc: Callable[[jax.Array], jax.Array],
  attention_layout: str,
  logit_scale: float = 1.0,
) -> adapters.Adapter:
  wanted = [name.removeprefix('out/') for name in manifest['shapes'] if name.startswith('out/')]

  def call(attention: nn.Module, inputs: Arrays) -> Arrays:
    x = to_nhwc(inputs['x'])
    out, routing = attention(x, with_attention='attn' in wanted)
    model = _one_block_model(
      manifest['constructor'], attentions=('routed',), padding=module.padding, head_dim=1
    )
    outputs = {
      'y': from_nhwc(out),
      'route/attn': _sorted_regions(routing.regions, model, 0, x.shape[1:3]),
      'route_logit': routing.logits / logit_scale,
      'route_weight': routing.weights,
    }
    if 'attn' in wanted:
      outputs['attn'] = rearrange(routing.attention, attention_layout)
    if 'full_attention' in wanted:
      # One region that attends to itself.
      full = module.clone(regions_per_side=1, top_k=1)
      outputs['full_attention'] = full.apply({'params': attention.variables['params']}, x)[0]
    return {name: outputs[name] for name in wanted}

  return adapters.module_adapter(
    manifest,
    module,
    rules=prefixed(rules, 'attn.'),
    call=call,
    without_gradient=_LOOKED_AT,
  )


@adapters.register_adapter('biformer', 'bra_nhwc')
def routed_attention_adapter(manifest: Manifest) -> adapters.Adapter:
  """Bi-level routing attention in NHWC."""
  arguments = manifest['constructor']
  return _routed_attention_adapter(
    manifest,
    _routed_attention(arguments),
    routed_rules(arguments.get('qk_dim') in (None, arguments['dim'])),
    to_nhwc=lambda x: x,
    from_nhwc=lambda x: x,
    attention_layout='b h r n k m -> (b r) h n (k m)',
  )


@adapters.register_adapter('biformer', 'bra_nchw')
def routed_attention_nchw_adapter(manifest: Manifest) -> adapters.Adapter:
  """Bi-level routing attention in NCHW, whose routing logits are not scaled."""
  module = _routed_attention(manifest['constructor']).clone(padding='qkv')
  return _routed_attention_adapter(
    manifest,
    module,
    ROUTED_NCHW,
    to_nhwc=channels_last,
    from_nhwc=channels_first,
    attention_layout='b h r n k m -> b h r n (k m)',
    logit_scale=manifest['constructor']['dim'] ** -0.5,
  )


def _global_adapter(
  manifest: Manifest, lepe: str, rules: list[Rule], nchw: bool = False
) -> adapters.Adapter:
  module = global_attention.GlobalAttention(
    lepe=lepe, lepe_side=manifest['constructor'].get('side_dwconv', 5)
  )

  def call(attention: nn.Module, inputs: Arrays) -> Arrays:
    if nchw:
      return {'y': channels_first(attention(channels_last(inputs['x'])))}
    return {'y': attention(inputs['x'])}

  return adapters.module_adapter(manifest, module, rules=rules, call=call)


@adapters.register_adapter('biformer', 'attention_vanilla')
def vanilla_attention_adapter(manifest: Manifest) -> adapters.Adapter:
  """Global attention."""
  return _global_adapter(manifest, 'none', global_rules())


@adapters.register_adapter('biformer', 'attention_lepe')
def lepe_attention_adapter(manifest: Manifest) -> adapters.Adapter:
  """Global attention with local enhancement of the input."""
  return _global_adapter(manifest, 'input', global_rules())


@adapters.register_adapter('biformer', 'attention_lepe_nchw')
def lepe_attention_nchw_adapter(manifest: Manifest) -> adapters.Adapter:
  """Global attention with local enhancement of the values."""
  return _global_adapter(manifest, 'value', global_rules(pointwise=True), nchw=True)


@adapters.register_adapter('biformer', 'topk_routing')
def router_adapter(manifest: Manifest) -> adapters.Adapter:
  """The router alone."""
  arguments = manifest['constructor']
  module = bi_level_routing.RegionRouter(
    arguments['topk'],
    arguments.get('qk_scale') or arguments['qk_dim'] ** -0.5,
    differentiable=arguments.get('diff_routing', False),
    parametric=arguments.get('param_routing', False),
  )

  def call(router: nn.Module, inputs: Arrays) -> Arrays:
    routing = router(inputs['q'], inputs['k'])
    return {
      'weight': routing.weights,
      'logit': routing.logits,
      'route/router': jnp.sort(routing.regions, axis=-1),
    }

  rules = _affine('router.emb', 'embedding', 'linear')
  return adapters.module_adapter(
    manifest, module, rules=rules, call=call, without_gradient=('logit',)
  )


# Functions.


@adapters.register_adapter('biformer', 'rrsda')
def regional_routing_adapter(manifest: Manifest) -> adapters.Adapter:
  """Routed attention between two maps, each head along its own graph."""
  arguments = manifest['constructor']
  heads, scale = arguments['num_heads'], arguments['scale']
  size, key_size = tuple(arguments['region_size']), tuple(arguments['kv_region_size'])

  def run(q: jax.Array, k: jax.Array, v: jax.Array, graph: jax.Array) -> Arrays:
    query, key, value = (channels_last(part) for part in (q, k, v))
    out = bi_level_routing.regional_routing_attention(
      query,
      key,
      value,
      graph,
      num_heads=heads,
      region_size=size,
      key_region_size=key_size,
      scale=scale,
    )
    regions = (
      bi_level_routing.partition_padded(x, side)[0] for x, side in ((query, size), (key, key_size))
    )
    parts = (linear.split_heads(x, heads) for x in regions)
    weights = bi_level_routing.routed_attention_weights(*parts, graph, scale=scale)
    return {'y': channels_first(out), 'attn': rearrange(weights, 'b h r n k m -> b h r n (k m)')}

  return adapters.function_adapter(run, without_gradient=_LOOKED_AT, jit=True)


@adapters.register_adapter('biformer', 'kv_gather')
def gather_adapter(manifest: Manifest) -> adapters.Adapter:
  """The gathering of regions alone."""
  del manifest

  def run(kv: jax.Array, idx: jax.Array, weight: jax.Array | None = None) -> Arrays:
    return {'y': bi_level_routing.gather_regions(kv, idx, weight)}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('biformer', 'loss_soft_target_ce')
def soft_target_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """Soft-target cross entropy."""
  del manifest
  return adapters.function_adapter(
    lambda logits, target: {
      'loss': losses.soft_target_cross_entropy(logits, target).mean(keepdims=True)
    }
  )


@adapters.register_adapter('biformer', 'loss_label_smoothing_ce')
def label_smoothing_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """Label smoothing with 0.1."""
  del manifest
  return adapters.function_adapter(
    lambda logits, label: {
      'loss': losses.label_smoothing_cross_entropy(logits, label, 0.1).mean(keepdims=True)
    }
  )


@adapters.register_adapter('biformer', 'loss_mixup_target_ce')
def mixup_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """Cross entropy against smoothed labels of a batch mixed with its reverse."""
  arguments = manifest['constructor']

  def run(logits: jax.Array, label: jax.Array) -> Arrays:
    target = mixing.mixup_targets(
      label, arguments['num_classes'], arguments['lam'], arguments['smoothing'], logits.dtype
    )
    return {'loss': losses.soft_target_cross_entropy(logits, target).mean(keepdims=True)}

  return adapters.function_adapter(run)


@adapters.register_adapter('biformer', 'loss_distill_soft')
@adapters.register_adapter('biformer', 'loss_distill_hard')
def distillation_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """Soft-target cross entropy blended with distillation from a teacher."""
  arguments = manifest['constructor']
  alpha = arguments['alpha']

  def run(logits: jax.Array, logits_kd: jax.Array, teacher: jax.Array, target: jax.Array) -> Arrays:
    if arguments['type'] == 'soft':
      distilled = losses.soft_distillation_loss(logits_kd, teacher, arguments['tau'])
    else:
      distilled = losses.hard_distillation_loss(logits_kd, teacher)
    base = losses.soft_target_cross_entropy(logits, target)
    return {'loss': ((1 - alpha) * base + alpha * distilled).mean(keepdims=True)}

  return adapters.function_adapter(run)
