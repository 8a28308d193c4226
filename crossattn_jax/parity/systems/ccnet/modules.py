"""Cases of single modules of CCNet: attention, norms, blocks, heads."""

from collections.abc import Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import criss_cross
from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.conversion import rules as shared_rules
from crossattn_jax.conversion.layouts import channels_first, channels_last, first_map
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.systems import ccnet as ccnet
from crossattn_jax.heads import style as style_lib
from crossattn_jax.heads.segmentation import aspp, pyramid_pooling, rcca
from crossattn_jax.kernels.criss_cross import api, reference
from crossattn_jax.layers import batch_norm, conv_norm
from crossattn_jax.models.backbones import resnet
from crossattn_jax.parity import adapters

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

_STYLE = style_lib.Style(corner_aligned=True, activated_norm=True, dropout_rate=0.0)
_UNIT = functools.partial(conv_norm.ConvNorm, absolute_scale=True)


# Attention.


def attention_adapter(implementation: str = 'auto', interpret: bool = False) -> adapters.Adapter:
  """The attention alone, by one of its implementations."""

  def run(q: jax.Array, k: jax.Array, v: jax.Array) -> Arrays:
    q, k, v = (channels_last(x) for x in (q, k, v))
    out = api.attention(q, k, v, implementation, interpret=interpret)
    scores = reference.affinity(q, k)
    return {
      'out': channels_first(out),
      'lse': nn.logsumexp(scores, axis=-1),
      'attention': nn.softmax(scores),
    }

  return adapters.function_adapter(run, without_gradient=('lse', 'attention'), jit=True)


@adapters.register_adapter('ccnet', 'criss_cross_attention')
def _criss_cross_attention(manifest: Manifest) -> adapters.Adapter:
  for name, tensor in (('key_dim', 'k'), ('value_dim', 'v')):
    manifest['constructor'].ignore(name, only=(manifest['inputs'][tensor]['shape'][1],))
  return attention_adapter()


def _module(manifest: Manifest, rank: int) -> adapters.Adapter:
  c = manifest['constructor']
  in_dim, recurrence = c['in_dim'], c.get('recurrence', 2)

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    x, outputs = channels_last(inputs['x']), {}
    for r in range(recurrence):
      x = module(x)
      outputs[f'r{r + 1}'] = channels_first(x)
    return outputs

  return adapters.module_adapter(
    manifest,
    # Once at a time: the case recorded the map after each.
    criss_cross.CrissCrossAttention(1, reduction=in_dim // c.get('key_dim', in_dim // 8)),
    rules=mapping_lib.prefixed(ccnet.criss_cross_rules(rank), 'cca.', ''),
    call=call,
  )


@adapters.register_adapter('ccnet', 'CrissCrossAttention')
def _criss_cross_module(manifest: Manifest) -> adapters.Adapter:
  return _module(manifest, rank=2)


@adapters.register_adapter('ccnet', 'CrissCrossAttention3D')
def _criss_cross_module_3d(manifest: Manifest) -> adapters.Adapter:
  return _module(manifest, rank=3)


@adapters.register_adapter('ccnet', 'cca3d_branch_as_is')
def _community_module_3d(manifest: Manifest) -> adapters.Adapter:
  """The file of the branch pure-python, whose mistakes are repeated here and nowhere else."""
  manifest['constructor'].ignore('verbose')
  manifest['constructor'].ignore('in_dim', only=(manifest['inputs']['x']['shape'][1],))

  class Module(nn.Module):
    @nn.compact
    def __call__(self, x):
      channels = x.shape[-1]
      q = nn.Dense(channels // 8, name='query')(x)
      k = nn.Dense(channels // 8, name='key')(x)
      v = nn.Dense(channels, name='value')(x)
      batch, height, width, depth = x.shape[:4]
      itself = jnp.eye(height, dtype=bool)[:, None, None]
      scores = [
        jnp.where(itself, -jnp.inf, jnp.einsum('bhwdc,bgwdc->bhwdg', q, k)),
        jnp.einsum('bhwdc,bhudc->bhwdu', q, k),
        # The pixel itself a second time.
        jnp.einsum('bhwdc,bhwec->bhwde', q, k),
      ]
      weights = nn.softmax(jnp.concatenate(scores, axis=-1))
      column, row, line = jnp.split(weights, [height, height + width], axis=-1)
      # Axes in an order that the reshaping does not expect.
      row = row.transpose(0, 1, 4, 2, 3).reshape(batch, height, depth, width, width)
      out = jnp.einsum('bhwdg,bgwdc->bhwdc', column, v)
      out += jnp.einsum('bhdwu,bhudc->bhwdc', row, v)
      out += jnp.einsum('bhwde,bhwec->bhwdc', line, v)
      return self.param('gate', nn.initializers.zeros, ()) * out + x

  return adapters.module_adapter(
    manifest,
    Module(),
    rules=ccnet.criss_cross_rules(3),
    call=lambda module, inputs: {'y': channels_first(module(channels_last(inputs['x'])))},
  )


# Norms, blocks, heads.


@adapters.register_adapter('ccnet', 'abn')
def _activated_norm(manifest: Manifest) -> adapters.Adapter:
  c, train = manifest['constructor'], manifest['mode'] == 'train'
  c.ignore('num_features', only=(manifest['inputs']['x']['shape'][1],))
  slope = c.get('slope', 0.01)
  norm = functools.partial(
    batch_norm.BatchNorm,
    momentum=1 - c.get('momentum', 0.1),
    epsilon=c.get('eps', 1e-5),
    absolute_scale=True,
  )

  class Norms(nn.Module):
    @nn.compact
    def __call__(self, x):
      leaky = norm(name='leaky')(x, train)
      return nn.leaky_relu(leaky, slope), norm(name='identity')(x, train)

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    leaky, identity = module(channels_last(inputs['x']))
    return {'leaky': channels_first(leaky), 'identity': channels_first(identity)}

  return adapters.module_adapter(
    manifest,
    Norms(),
    rules=shared_rules.batch_norm('{norm:leaky|identity}', '{norm}'),
    call=call,
    statistic=lambda key: key.replace('leaky.', 'new_'),
  )


def _map_adapter(
  manifest: Manifest,
  module: nn.Module,
  rules: list[Rule],
  taps: Mapping[str, correspondence.TapLike] | None = None,
  output: str = 'y',
  parameters_of: nn.Module | None = None,
) -> adapters.Adapter:
  """The adapter of a module that maps a map 'x' to another."""
  train = manifest['mode'] == 'train'
  return adapters.module_adapter(
    manifest,
    module,
    rules=rules,
    call=lambda module, inputs: {output: first_map(module(channels_last(inputs['x']), train))},
    taps=taps,
    parameters_of=parameters_of,
    statistic=ccnet.statistic,
  )


@adapters.register_adapter('ccnet', 'bottleneck')
def _bottleneck(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('inplanes', only=(manifest['inputs']['x']['shape'][1],))
  dilation = c.get('dilation', 1) * c.get('multi_grid', 1)
  module = resnet.Bottleneck(
    c['planes'], c.get('stride', 1), dilation, c.get('downsample', False), _UNIT
  )
  return _map_adapter(manifest, module, prefixed(shared_rules.BOTTLENECK, 'b.'))


@adapters.register_adapter('ccnet', 'stem')
def _stem(manifest: Manifest) -> adapters.Adapter:
  train = manifest['mode'] == 'train'

  def call(stem: nn.Module, inputs: Arrays) -> Arrays:
    return {'after_pool': channels_first(stem(channels_last(inputs['image']), train))}

  return adapters.module_adapter(
    manifest,
    resnet.DeepStem((64, 64, 128), True, _UNIT),
    rules=ccnet.STEM,
    call=call,
    taps={'before_pool': ('conv_2', first_map)},
    statistic=ccnet.statistic,
  )


@adapters.register_adapter('ccnet', 'rcca_module')
def _rcca(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('in_channels', only=(manifest['inputs']['x']['shape'][1],))
  recurrence = c.get('recurrence', 2)
  module = rcca.RCCAHead(
    c.get('num_classes', 5), _STYLE, fused=c.get('out_channels', 512), recurrence=recurrence
  )
  taps = {name: tap for name, tap in ccnet.RCCA_TAPS.items() if recurrence or name != 'cca'}
  return _map_adapter(
    manifest, module, ccnet.RCCA, taps, 'logits', module.clone(recurrence=max(1, recurrence))
  )


@adapters.register_adapter('ccnet', 'psp_module')
def _psp(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('features', only=(manifest['inputs']['x']['shape'][1],))
  width, scales = c['out_features'], tuple(c.get('sizes', pyramid_pooling.SCALES))
  module = pyramid_pooling.PyramidPooling(width, width, True, _STYLE, scales)
  return _map_adapter(manifest, module, ccnet.psp_rules(scales))


@adapters.register_adapter('ccnet', 'aspp_module')
def _aspp(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('features', only=(manifest['inputs']['x']['shape'][1],))
  dilations = tuple(c.get('dilations', (12, 24, 36)))
  module = aspp.AtrousSpatialPyramidPooling(
    c['inner_features'], c['out_features'], _STYLE, dilations
  )
  return _map_adapter(manifest, module, ccnet.aspp_rules(dilations))
