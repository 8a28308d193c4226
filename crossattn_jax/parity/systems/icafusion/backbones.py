"""Cases of the blocks of the backbones and of the neck."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax

from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.systems import icafusion as rules
from crossattn_jax.layers import conv_norm
from crossattn_jax.models.backbones import csp_darknet, resnet, vgg
from crossattn_jax.parity import adapters, arguments

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


def _map_adapter(
  manifest: Manifest, module: nn.Module, module_rules: Sequence[Rule]
) -> adapters.Adapter:
  """The adapter of a module from map to map.

  Cases of training mode wrap the original's module, and name the running statistics they record.
  """
  train = manifest['mode'] == 'train'
  wrapped = any(entry['key'].startswith('body.') for entry in manifest['state'])
  after = manifest['constructor'].get('after', {})
  names = {key: name for name, key in after.items()}

  def call(bound: nn.Module, inputs: Arrays) -> Arrays:
    return {'y': channels_first(bound(channels_last(inputs['x']), train))}

  return adapters.module_adapter(
    manifest,
    module,
    rules=prefixed(module_rules, 'body.' if wrapped else ''),
    call=call,
    statistic=lambda key: names.get(key, f'after/{key}'),
  )


def _ignore_input_width(manifest: Manifest) -> arguments.Arguments:
  c = manifest['constructor']
  c.ignore('c1', only=(manifest['inputs']['x']['shape'][1],))
  return c


@adapters.register_adapter('icafusion', 'conv_stem')
def _conv_unit(manifest: Manifest) -> adapters.Adapter:
  c = _ignore_input_width(manifest)
  side, padding = c.get('k', 1), c.get('p')
  module = csp_darknet.ConvUnit(
    c['c2'],
    side,
    c.get('s', 1),
    groups=c.get('g', 1),
    activation=nn.silu if c.get('act', True) else None,
    padding=side // 2 if padding is None else padding,
  )
  return _map_adapter(manifest, module, rules.CONV_UNIT)


@adapters.register_adapter('icafusion', 'c3')
def _cross_stage(manifest: Manifest) -> adapters.Adapter:
  c = _ignore_input_width(manifest)
  module = csp_darknet.CrossStage(c['c2'], c.get('n', 1), c.get('shortcut', True))
  return _map_adapter(manifest, module, rules.CROSS_STAGE)


@adapters.register_adapter('icafusion', 'sppf')
def _spatial_pyramid_pooling(manifest: Manifest) -> adapters.Adapter:
  c = _ignore_input_width(manifest)
  module = csp_darknet.SpatialPyramidPooling(c['c2'], c.get('k', 5))
  return _map_adapter(manifest, module, rules.SPATIAL_PYRAMID_POOLING)


@adapters.register_adapter('icafusion', 'vgg_block')
def _vgg_block(manifest: Manifest) -> adapters.Adapter:
  c = _ignore_input_width(manifest)
  return _map_adapter(manifest, vgg.Block(c['c2'], c['num_convs']), rules.VGG_BLOCK)


class _ResNetLayers(nn.Module):
  """A chain of stems and stages; each is (channels_in, width, stride, whether a stem, depth)."""

  layers: Sequence[Sequence[Any]]

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    unit = functools.partial(conv_norm.ConvNorm, **csp_darknet.NORM)
    for i, (channels, width, stride, is_stem, depth) in enumerate(self.layers):
      if channels != x.shape[-1]:
        message = f'stages: layer {i} takes {channels} channels and gets {x.shape[-1]}'
        raise arguments.ArgumentError(message)
      name = f'layer_{i}'
      if is_stem:
        x = resnet.Stem(width, unit, name=name)(x, train)
      else:
        x = resnet.Stage(depth, width, stride, 1, (1,), unit, name=name)(x, train)
    return x


@adapters.register_adapter('icafusion', 'resnet_stage')
def _resnet_layers(manifest: Manifest) -> adapters.Adapter:
  layers = manifest['constructor']['stages']
  module_rules = []
  for i, (*_, is_stem, _) in enumerate(layers):
    layer = rules.RESNET_STEM if is_stem else rules.RESNET_STAGE
    module_rules += prefixed(layer, f'l.{i}.', f'layer_{i}/')
  return _map_adapter(manifest, _ResNetLayers(layers), module_rules)
