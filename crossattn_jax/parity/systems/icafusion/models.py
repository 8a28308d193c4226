"""Cases of whole models."""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from flax import linen as nn
import jax

from crossattn_jax.conversion.layouts import channels_last
from crossattn_jax.conversion.systems import icafusion as rules
from crossattn_jax.models import icafusion, registry
from crossattn_jax.models.icafusion import model as model_lib
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.icafusion import detection

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

_FUSIONS = {'transformer': 'transformer', 'nin': 'nin', 'add': 'add_official'}
# The original's names of its configurations, and ours of the models.
_OFFICIAL = re.compile(r'yolov5([nsml]?)_?(ResNet50|VGG16)?_(Transfusion|NiNfusion|Add)_\w+')
_LEVELS = ('p3', 'p4', 'p5')


def _build(manifest: Manifest) -> icafusion.ICAFusion:
  c = manifest['constructor']
  fusion = c['fusion']
  if fusion not in _FUSIONS:
    raise arguments.ArgumentError(f'fusion is {fusion!r}; known are {", ".join(_FUSIONS)}')
  c.ignore_rates('dropout')
  options = {
    'fusion': _FUSIONS[fusion],
    'num_classes': c['nc'],
    'num_heads': c.get('h', 8),
    'mlp_ratio': c.get('block_exp', 4),
    'fusion_depth': c.get('n_layer', 1),
    'loops': c.get('loops', 1),
    'attention_drop_rate': 0.0,
    'drop_rate': 0.0,
    'unused_parameters': True,
  }
  config = c['config']
  if not isinstance(config, str):
    return icafusion.ICAFusion(**_fields_of_table(config), **options)
  match = _OFFICIAL.fullmatch(config)
  if match is None:
    raise arguments.ArgumentError(f'config is {config!r}, which is not one of the original')
  return registry.create_model(f'icafusion_{(match[1] or match[2]).lower()}', **options)


def _fields_of_table(config: arguments.Arguments) -> dict[str, Any]:
  """The fields that a table of layers says.

  Raises:
    ArgumentError: it is of another graph than the original's on CSPDarknet.
  """
  config.ignore('nc')  # The case has its own.
  backbone, head = config['backbone'], config['head']
  stages, neck = backbone[2:9:2], [head[i] for i in (0, 3, 4, 7, 8, 10, 11, 13)]
  widths = [backbone[0][3][0], *(row[3][0] for row in stages)]
  depths = [row[1] for row in stages]
  neck_widths, neck_depth = [row[3][0] for row in neck], neck[1][1]
  fusions = backbone[20:]
  expected = [*_stream(widths, depths, -1), *_stream(widths, depths, -4)]
  if backbone[:20] != expected or [row[0] for row in fusions] != [[4, 14], [6, 16], [9, 19]]:
    raise arguments.ArgumentError(f'config.backbone is {backbone}, which is no CSPDarknet')
  if head != _neck(neck_widths, neck_depth):
    raise arguments.ArgumentError(f'config.head is {head}, which is not the original')
  depth, width = config['depth_multiple'], config['width_multiple']
  fields = {
    'widths': tuple(model_lib.scale_width(x, width) for x in widths),
    'depths': tuple(model_lib.scale_depth(x, depth) for x in depths),
    'neck_widths': tuple(model_lib.scale_width(x, width) for x in neck_widths),
    'neck_depth': model_lib.scale_depth(neck_depth, depth),
    'anchor_sizes': _in_order(detection.anchor_sizes(config)),
  }
  if all(len(row[3]) > 2 for row in fusions):
    fields['grids'] = tuple(tuple(row[3][1:3]) for row in fusions)
  return fields


def _in_order(sizes: tuple[Any, ...]) -> tuple[Any, ...]:
  """The original's levels have larger anchors at larger strides, however they are given."""
  areas = [sum(width * height for width, height in level) for level in sizes]
  return sizes if areas[0] <= areas[-1] else sizes[::-1]


def _stream(widths: Sequence[int], depths: Sequence[int], start: int) -> list[list[Any]]:
  rows = [[start, 1, 'Conv', [widths[0], 6, 2, 2]]]
  for width, depth in zip(widths[1:], depths, strict=True):
    rows += [[-1, 1, 'Conv', [width, 3, 2]], [-1, depth, 'C3', [width]]]
  return [*rows, [-1, 1, 'SPPF', [widths[-1], 5]]]


def _neck(widths: Sequence[int], depth: int) -> list[list[Any]]:
  upsample = [-1, 1, 'nn.Upsample', ['None', 2, 'nearest']]

  def concatenate(layer: int) -> list[Any]:
    return [[-1, layer], 1, 'Concat', [1]]

  def stage(part: int) -> list[Any]:
    return [-1, depth, 'C3', [widths[part], False]]

  return [
    [-1, 1, 'Conv', [widths[0], 1, 1]],
    upsample,
    concatenate(21),
    stage(1),
    [-1, 1, 'Conv', [widths[2], 1, 1]],
    upsample,
    concatenate(20),
    stage(3),
    [-1, 1, 'Conv', [widths[4], 3, 2]],
    concatenate(27),
    stage(5),
    [-1, 1, 'Conv', [widths[6], 3, 2]],
    concatenate(23),
    stage(7),
    [[30, 33, 36], 1, 'Detect', ['nc', 'anchors']],
  ]


def _run(module: nn.Module, inputs: Arrays, train: bool) -> tuple[Arrays, Any]:
  rgb, thermal = channels_last(inputs['rgb']), channels_last(inputs['ir'])
  outputs, _ = module(rgb, thermal, train)
  return outputs, module.anchors().of_input(rgb.shape[1:3])


@adapters.register_adapter('icafusion', 'Detector')
def _detector(manifest: Manifest) -> adapters.Adapter:
  module, train = _build(manifest), manifest['mode'] == 'train'

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    return rules.original_outputs(*_run(module, inputs, train), _LEVELS)

  return adapters.module_adapter(
    manifest,
    module,
    rules=rules.model_rules(module),
    call=call,
    taps=rules.model_taps(module),
  )


@adapters.register_adapter('icafusion', 'Detector+loss')
def _detector_and_loss(manifest: Manifest) -> adapters.Adapter:
  module, train = _build(manifest), manifest['mode'] == 'train'
  losses = detection.losses_of(manifest)
  manifest['constructor'].ignore('outputs')  # Those that the case recorded.

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    outputs, grid = _run(module, inputs, train)
    return losses(outputs, inputs['targets'], grid)

  return adapters.module_adapter(
    manifest,
    module,
    rules=rules.model_rules(module),
    call=call,
    taps=rules.model_taps(module),
    without_gradient=['items'],
  )
