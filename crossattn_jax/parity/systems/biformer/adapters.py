"""Cases of whole BiFormers: classifiers and the backbone of dense predictors."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import bi_level_routing
from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.systems import biformer as rules
from crossattn_jax.models import biformer, registry
from crossattn_jax.parity import adapters, arguments, cases

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


# What the original's constructors say.


def choose(name: str, value: Any, choices: Mapping[Any, str]) -> str:
  """Our word for a value.

  Raises:
    arguments.ArgumentError: the original has no such value, or cannot run with it.
  """
  if value not in choices:
    raise arguments.ArgumentError(f'{name} is {value!r}; known are {list(choices)}')
  return choices[value]


def routing(c: arguments.Arguments) -> str:
  """How regions are routed."""
  flags = ('param_routing', 'diff_routing', 'soft_routing')
  kinds = {
    (False, False, False): 'hard',
    (False, False, True): 'soft',
    (False, True, True): 'soft_differentiable',
    (True, True, True): 'soft_parametric',
  }
  return choose(', '.join(flags), tuple(bool(c.get(flag, False)) for flag in flags), kinds)


def pooling(c: arguments.Arguments, default: str = 'identity') -> str:
  """How keys and values are pooled, by default as the original of the kind does."""
  modes = {
    'identity': 'none',
    None: 'none',
    'avgpool': 'average',
    'maxpool': 'max',
    'ada_avgpool': 'adaptive_average',
    'ada_maxpool': 'adaptive_max',
  }
  return choose('kv_downsample_mode', c.get('kv_downsample_mode', default), modes)


def attention_kind(top_k: int, nchw: bool = False) -> str:
  """Which attention a number of regions stands for."""
  if nchw:
    return 'routed' if top_k > 0 else choose('topk', top_k, {-1: 'global_lepe_value'})
  return (
    'routed'
    if top_k > 0
    else choose('topk', top_k, {0: 'convolution', -1: 'global', -2: 'global_lepe'})
  )


def maxvit_window(c: arguments.Arguments) -> int:
  """Positions on a side of MaxViT's windows and of its grids, in the original's word or ours."""
  return c.get('grid_window_size', c.get('window', 7))


def block_options(c: arguments.Arguments, kv_pooling: str = 'identity') -> dict[str, Any]:
  """Fields of `biformer.Options` that blocks and models say in the same words.

  Only those that the case says; what it is silent about is the variant's, of the pooling of keys
  and values `kv_pooling`.
  """
  layer_scale = c.get('layer_scale_init_value', -1)
  given = {
    'head_dim': c.get('head_dim'),
    'qk_scale': c.get('qk_scale'),
    'lepe_side': c.get('side_dwconv'),
    'mlp_depthwise': c.get('mlp_dwconv'),
    'pre_norm': c.get('pre_norm'),
    'layer_scale': layer_scale if layer_scale > 0 else None,
    'padding': 'input' if c.get('auto_pad', False) else None,
  }
  c.ignore('before_attn_dwconv', only=(0, 3))
  if 'before_attn_dwconv' in c:
    given['position_conv'] = bool(c['before_attn_dwconv'])
  whole = choose('param_attention', c.get('param_attention', 'qkvo'), {'qkvo': 'o', 'qkv': ''})
  return {
    'routing': routing(c),
    'kv_pooling': pooling(c, kv_pooling),
    'output_projection': bool(whole),
    **{field: value for field, value in given.items() if value is not None},
  }


def _per_stage(value: Any, stages: int) -> tuple[Any, ...]:
  return tuple(value) if isinstance(value, Sequence) else (value,) * stages


def build_model(c: arguments.Arguments, variant: str, **fields: Any) -> biformer.BiFormer:
  """The model of an official constructor.

  Args:
    c: the constructor; what it is silent about is the variant's.
    variant: a registered name where the case does not say its own.
    **fields: further ones of `biformer.Options`.
  """
  c.ignore_rates('drop_rate', 'drop_path_rate')
  c.ignore('use_checkpoint_stages', 'pretrained', 'pe_stages', 'img_size')
  c.ignore('kv_downsample_kernels', 'disable_bn_grad')
  c.ignore('representation_size', only=(None,))
  c.ignore('pe', only=(None, 'none'))
  base = registry.create_model(c.get('variant', variant)).options
  widths = tuple(c.get('embed_dim', c.get('dims', base.widths)))
  stages = len(widths)
  found = block_options(c)
  top_k = c.get('topks')
  if top_k is not None:
    nchw = base.torch_linear
    found['attentions'] = tuple(attention_kind(count, nchw) for count in top_k)
    found['top_k'] = tuple(max(count, 0) for count in top_k)
  qk_dims = c.get('qk_dims')
  if qk_dims is not None:
    found['qk_dims'] = tuple(qk_dim or width for qk_dim, width in zip(qk_dims, widths, strict=True))
  adaptive = c.get('kv_per_wins', (2, 2, -1, -1)[:stages])
  strided = c.get('kv_downsample_ratios', (4, 2, 1, 1)[:stages])
  sizes = adaptive if found['kv_pooling'].startswith('adaptive') else strided
  windows = c.get('n_win', c.get('n_wins', base.regions_per_side))
  return biformer.BiFormer(
    dataclasses.replace(
      base,
      widths=widths,
      depths=tuple(c.get('depth', c.get('depths', base.depths))),
      regions_per_side=_per_stage(windows, stages),
      kv_pool_sizes=tuple(max(size, 1) for size in _per_stage(sizes or 1, stages)),
      mlp_ratios=_per_stage(c.get('mlp_ratios', base.mlp_ratio), stages),
      frozen_norm=c.get('norm_eval', False),
      num_channels=c.get('in_chans', base.num_channels),
      num_classes=c.get('num_classes', base.num_classes),
      **{**found, **fields},
    )
  )


# Whole models.


def sorted_regions(
  regions: jax.Array, regions_per_side: int, padding: str, size: Sequence[int]
) -> jax.Array:
  """Ascending, and -1 for regions of padding only, which are all alike."""
  grid, region_size = bi_level_routing.region_grid(size, regions_per_side, padding)
  row, column = regions // grid[1] * region_size[0], regions % grid[1] * region_size[1]
  real = (row < size[0]) & (column < size[1])
  return jnp.sort(jnp.where(real, regions, -1), axis=-1)


def recorded_routing(features: Mapping[str, jax.Array], options: biformer.Options) -> Arrays:
  """The chosen regions of a model's features, as they were recorded, by 'STAGE.BLOCK'."""
  blocks = '' if options.overlapping else 'blocks.'
  chosen = {}
  for name, regions in features.items():
    if name.startswith('routing/'):
      _, stage, block = name.split('/')
      chosen[f'{stage}.{blocks}{block}'] = sorted_regions(
        regions,
        options.regions_per_side[int(stage)],
        options.padding,
        features[f'stage_{stage}'].shape[1:3],
      )
  return chosen


def _model_adapter(manifest: Manifest, module: biformer.BiFormer) -> adapters.Adapter:
  train, options = manifest['mode'] == 'train', module.options

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    result, features = model(channels_last(inputs['image']), train)
    if options.backbone:
      outputs = {f'c{s + 2}': channels_first(x) for s, x in enumerate(result)}
    else:
      outputs = {'logits': result}
    chosen = recorded_routing(features, options)
    return outputs | {f'route/stages.{key}': regions for key, regions in chosen.items()}

  return adapters.module_adapter(
    manifest,
    module,
    rules=rules.model_rules(module),
    call=call,
    taps=rules.model_taps(module),
    statistic='bn_after/{}'.format,
  )


@adapters.register_adapter('biformer', 'BiFormer')
def _classifier(manifest: Manifest) -> adapters.Adapter:
  module = build_model(manifest['constructor'], 'biformer_tiny')
  adapter = _model_adapter(manifest, module)
  if 'out/bn_after/downsample_layers.0.1.running_mean' in manifest['shapes']:
    return _with_recorded_statistics(manifest, adapter)
  return adapter


@adapters.register_adapter('biformer', 'BiFormerSTL')
def _swin_layout(manifest: Manifest) -> adapters.Adapter:
  return _model_adapter(manifest, build_model(manifest['constructor'], 'biformer_stl'))


@adapters.register_adapter('biformer', 'BiFormerSTL_nchw')
def _swin_layout_nchw(manifest: Manifest) -> adapters.Adapter:
  # It pads whatever `auto_pad` says.
  module = build_model(manifest['constructor'], 'biformer_stl_nchw', padding='qkv')
  return _model_adapter(manifest, module)


@adapters.register_adapter('biformer', 'MaxViTSTL')
def _maxvit(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  module = build_model(c, 'maxvit_stl', window=maxvit_window(c))
  return _model_adapter(manifest, module)


@adapters.register_adapter('biformer', 'BiFormer.features')
def _backbone(manifest: Manifest) -> adapters.Adapter:
  module = build_model(manifest['constructor'], 'biformer_small', backbone=True)
  return _model_adapter(manifest, module)


def _with_recorded_statistics(manifest: Manifest, adapter: adapters.Adapter) -> adapters.Adapter:
  """Starts from the running statistics that the recorder of `biformer_tiny_224_train` started from.

  So does any case that records `bn_after`, as that recorder does. The manifest says that they are
  of the case's seed, but those after the recorded step are, to the last digit of float32, nine
  tenths of the statistics of seed 0 plus a tenth of the batch's: the recorder drew the parameters
  anew and not the statistics. In training mode nothing else depends on them.
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
