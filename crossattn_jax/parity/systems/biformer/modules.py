"""Cases of single modules of BiFormer: blocks, attention, the router."""

from collections.abc import Callable, Mapping
from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import bi_level_routing, global_attention
from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine
from crossattn_jax.conversion.systems import biformer as rules
from crossattn_jax.layers import linear
from crossattn_jax.models import biformer
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.biformer import adapters as models

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# Outputs that were recorded beside the result, and are no part of what was differentiated.
_LOOKED_AT = ('attn', 'route_logit', 'route_weight', 'full_attention')


def _pool_size(c: arguments.Arguments, mode: str) -> int:
  """Of the pooling of keys and values."""
  c.ignore('kv_downsample_kernel')
  adaptive, strided = c.get('kv_per_win', 4), c.get('kv_downsample_ratio', 4)
  return max((adaptive if mode.startswith('adaptive') else strided) or 1, 1)


# Blocks.


def _block_adapter(
  manifest: Manifest,
  kind: str,
  depth: int = 1,
  index: int = 0,
  kv_pooling: str = 'identity',
  **fields: Any,
) -> adapters.Adapter:
  """The adapter of block `index` of a stage of blocks with attention of a kind."""
  c = manifest['constructor']
  c.ignore_rates('drop_path', 'drop_path_rate')
  dim, heads, top_k = c['dim'], c.get('num_heads', 8), c.get('topk', 4)
  qk_dim = c.get('qk_dim') or dim
  found = {'head_dim': qk_dim // heads, 'lepe_side': 5, **models.block_options(c, kv_pooling)}
  options = biformer.Options(
    **found
    | {
      'widths': (dim,),
      'depths': (depth,),
      'attentions': (kind,),
      'top_k': (max(top_k, 0),),
      'regions_per_side': (c.get('n_win', 7),),
      'qk_dims': (qk_dim,),
      'kv_pool_sizes': (_pool_size(c, found['kv_pooling']),),
      'mlp_ratio': c.get('mlp_ratio', 4),
      **fields,
    }
  )

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    out, regions = module(channels_last(inputs['x']))
    outputs = {'y': channels_first(out)}
    if regions is not None:
      outputs['route/attn'] = models.sorted_regions(
        regions, options.regions_per_side[0], options.padding, out.shape[1:3]
      )
    return outputs

  return adapters.module_adapter(
    manifest,
    biformer.Block(options.stage_attentions(0)[index], 0.0, options),
    rules=rules.block_rules(options),
    call=call,
  )


@adapters.register_adapter('biformer', 'block')
def _block(manifest: Manifest) -> adapters.Adapter:
  kind = models.attention_kind(manifest['constructor'].get('topk', 4))
  return _block_adapter(manifest, kind, kv_pooling='ada_avgpool')


@adapters.register_adapter('biformer', 'stl_block_nchw')
def _block_nchw(manifest: Manifest) -> adapters.Adapter:
  """A block of biformer_stl_nchw, which pads whatever `auto_pad` says."""
  kind = models.attention_kind(manifest['constructor'].get('topk', 4), nchw=True)
  fields = {'padding': 'qkv', 'overlapping': False, 'position_conv': False, 'torch_linear': True}
  return _block_adapter(manifest, kind, **fields)


@adapters.register_adapter('biformer', 'maxvit_stl_block_attention')
@adapters.register_adapter('biformer', 'maxvit_stl_grid_attention')
def _maxvit_block(manifest: Manifest) -> adapters.Adapter:
  """A block of maxvit_stl; those with grid attention are the second, fourth, ... of a stage."""
  c = manifest['constructor']
  kinds = ('block', 'grid')
  kind = c.get('partition_type', manifest['module'].split('_')[2])
  models.choose('partition_type', kind, dict.fromkeys(kinds, ''))
  head_dim = c['dim'] // c['num_heads'] if 'num_heads' in c else c.get('head_dim', 32)
  return _block_adapter(
    manifest,
    'block_grid',
    depth=2,
    index=kinds.index(kind),
    head_dim=head_dim,
    window=models.maxvit_window(c),
    overlapping=False,
    position_conv=False,
    norm_epsilon=1e-5,
  )


# Attention.


def _routed_adapter(
  manifest: Manifest,
  module_rules: list[Rule],
  to_nhwc: Callable[[jax.Array], jax.Array],
  from_nhwc: Callable[[jax.Array], jax.Array],
  attention_layout: str,
  nchw: bool,
) -> adapters.Adapter:
  c = manifest['constructor']
  mode = models.pooling(c)
  whole = models.choose('param_attention', c.get('param_attention', 'qkvo'), {'qkvo': 1, 'qkv': 0})
  padding = 'input' if c.get('auto_pad', False) else 'none'
  scale, qk_dim = c.get('qk_scale'), c.get('qk_dim') or c['dim']
  module = bi_level_routing.BiLevelRoutingAttention(
    num_heads=c.get('num_heads', 8),
    regions_per_side=c.get('n_win', 7),
    top_k=c.get('topk', 4),
    qk_dim=qk_dim,
    scale=scale,
    lepe_side=c.get('side_dwconv', 3),
    routing=models.routing(c),
    padding='qkv' if nchw else padding,
    kv_pooling=mode,
    kv_pool_size=_pool_size(c, mode),
    output_projection=bool(whole),
  )
  wanted = {name.removeprefix('out/') for name in manifest['shapes'] if name.startswith('out/')}

  def call(attention: nn.Module, inputs: Arrays) -> Arrays:
    x = to_nhwc(inputs['x'])
    out, routing = attention(x, with_attention='attn' in wanted)
    # Only the logits of NHWC are scaled.
    logits = routing.logits / (scale or qk_dim**-0.5) if nchw else routing.logits
    outputs = {
      'y': from_nhwc(out),
      'route/attn': models.sorted_regions(
        routing.regions, module.regions_per_side, module.padding, x.shape[1:3]
      ),
      'route_logit': logits,
      'route_weight': routing.weights,
    }
    if 'attn' in wanted:
      outputs['attn'] = rearrange(routing.attention, attention_layout)
    if 'full_attention' in wanted:
      # One region that attends to itself.
      full = module.clone(regions_per_side=1, top_k=1)
      full = full.apply({'params': attention.variables['params']}, x)[0]
      outputs['full_attention'] = from_nhwc(full)
    return outputs

  return adapters.module_adapter(
    manifest,
    module,
    rules=prefixed(module_rules, 'attn.'),
    call=call,
    without_gradient=_LOOKED_AT,
  )


@adapters.register_adapter('biformer', 'bra_nhwc')
def _routed_attention(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  return _routed_adapter(
    manifest,
    rules.routed_rules(c.get('qk_dim') in (None, c['dim'])),
    to_nhwc=lambda x: x,
    from_nhwc=lambda x: x,
    attention_layout='b h r n k m -> (b r) h n (k m)',
    nchw=False,
  )


@adapters.register_adapter('biformer', 'bra_nchw')
def _routed_attention_nchw(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('attn_backend')
  c.ignore('qk_dim', only=(None, c['dim']))
  return _routed_adapter(
    manifest,
    rules.ROUTED_NCHW,
    to_nhwc=channels_last,
    from_nhwc=channels_first,
    attention_layout='b h r n k m -> b h r n (k m)',
    nchw=True,
  )


def _global_adapter(manifest: Manifest, lepe: str, nchw: bool = False) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore_rates('attn_drop', 'proj_drop')
  c.ignore('dim', only=(manifest['inputs']['x']['shape'][1 if nchw else -1],))
  side = c.get('side_dwconv', 5)
  module = global_attention.GlobalAttention(
    c.get('num_heads', 8),
    c.get('qkv_bias', False),
    c.get('qk_scale'),
    lepe if side else 'none',
    side,
  )

  def call(attention: nn.Module, inputs: Arrays) -> Arrays:
    if nchw:
      return {'y': channels_first(attention(channels_last(inputs['x'])))}
    return {'y': attention(inputs['x'])}

  return adapters.module_adapter(manifest, module, rules=rules.global_rules(nchw), call=call)


@adapters.register_adapter('biformer', 'attention_vanilla')
def _vanilla_attention(manifest: Manifest) -> adapters.Adapter:
  return _global_adapter(manifest, 'none')


@adapters.register_adapter('biformer', 'attention_lepe')
def _enhanced_attention(manifest: Manifest) -> adapters.Adapter:
  """Global attention with local enhancement of the input."""
  return _global_adapter(manifest, 'input')


@adapters.register_adapter('biformer', 'attention_lepe_nchw')
def _enhanced_attention_nchw(manifest: Manifest) -> adapters.Adapter:
  """Global attention with local enhancement of the values."""
  return _global_adapter(manifest, 'value', nchw=True)


@adapters.register_adapter('biformer', 'topk_routing')
def _router(manifest: Manifest) -> adapters.Adapter:
  c, width = manifest['constructor'], manifest['inputs']['q']['shape'][-1]
  c.ignore('qk_dim', only=(width,))
  module = bi_level_routing.RegionRouter(
    c.get('topk', 4),
    c.get('qk_scale') or width**-0.5,
    differentiable=c.get('diff_routing', False),
    parametric=c.get('param_routing', False),
  )

  def call(router: nn.Module, inputs: Arrays) -> Arrays:
    routing = router(inputs['q'], inputs['k'])
    return {
      'weight': routing.weights,
      'logit': routing.logits,
      'route/router': jnp.sort(routing.regions, axis=-1),
    }

  router_rules = affine('router.emb', 'embedding')
  return adapters.module_adapter(
    manifest, module, rules=router_rules, call=call, without_gradient=('logit',)
  )


# Functions.


@adapters.register_adapter('biformer', 'rrsda')
def _regional_routing(manifest: Manifest) -> adapters.Adapter:
  """Routed attention between two maps, each head along its own graph."""
  c, (_, heads, _, top_k) = manifest['constructor'], manifest['inputs']['graph']['shape']
  c.ignore('auto_pad')
  c.ignore('num_heads', only=(heads,))
  c.ignore('topk', only=(top_k,))
  scale, size = c['scale'], tuple(c['region_size'])
  key_size = tuple(c.get('kv_region_size') or size)

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
def _gather(manifest: Manifest) -> adapters.Adapter:
  weighted = models.choose(
    'mul_weight', manifest['constructor'].get('mul_weight', 'none'), {'none': 0, 'soft': 1}
  )

  def run(kv: jax.Array, idx: jax.Array, weight: jax.Array | None = None) -> Arrays:
    return {'y': bi_level_routing.gather_regions(kv, idx, weight if weighted else None)}

  return adapters.function_adapter(run, jit=True)
