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
    return icafusion.ICAFusion(**{**options, **_fields_of_table(config, fusion)})
  match = _OFFICIAL.fullmatch(config)
  if match is None:
    raise arguments.ArgumentError(f'config is {config!r}, which is not one of the original')
  return registry.create_model(f'icafusion_{(match[1] or match[2]).lower()}', **options)


# What the original calls the layers of its backbones, and the layers of a stream.
_STREAMS = {'Conv': ('csp_darknet', 10), 'ResNetlayer': ('resnet', 5), 'VGGblock': ('vgg', 5)}
_FUSION_LAYERS = {'transformer': 'TransformerFusionBlock', 'nin': 'NiNfusion', 'add': 'Add'}


def _fields_of_table(config: arguments.Arguments, fusion: str) -> dict[str, Any]:
  """The fields that a table of layers says.

  Raises:
    ArgumentError: it is of another graph than the original's.
  """
  config.ignore('nc')  # The case has its own.
  config.ignore('ch', only=(3,))
  depth, width = config['depth_multiple'], config['width_multiple']
  backbone, head = config['backbone'], config['head']
  layer = backbone[0][2]
  if layer not in _STREAMS:
    raise arguments.ArgumentError(
      f'config.backbone begins with {layer}; known are {", ".join(_STREAMS)}'
    )
  stream, count = _STREAMS[layer]
  neck = [head[i] for i in (0, 3, 4, 7, 8, 10, 11, 13)]
  neck_widths, neck_depth = [row[3][0] for row in neck], neck[1][1]
  widths, depths, rows = _streams_of_table(stream, backbone[:count])
  fusions = backbone[2 * count :]
  taken = (4, 6, 9) if stream == 'csp_darknet' else (2, 3, 4)
  pairs = [[[i, i + count], 1, _FUSION_LAYERS[fusion]] for i in taken]
  if backbone[: 2 * count] != rows or [row[:3] for row in fusions] != pairs:
    raise arguments.ArgumentError(
      f'config.backbone is {backbone}, which is no {stream} with {fusion} of the original'
    )
  if _plain(head) != _neck(neck_widths, neck_depth, 2 * count):
    raise arguments.ArgumentError(f'config.head is {head}, which is not the original')
  if stream == 'csp_darknet':
    widths = [model_lib.scale_width(x, width) for x in widths]
    depths = [model_lib.scale_depth(x, depth) for x in depths]
  fields = {
    'stream': stream,
    'widths': tuple(widths),
    'depths': tuple(depths),
    'neck_widths': tuple(model_lib.scale_width(x, width) for x in neck_widths),
    'neck_depth': model_lib.scale_depth(neck_depth, depth),
    'anchor_sizes': _in_order(detection.anchor_sizes(config)),
  }
  return fields | _fields_of_fusions(fusion, [row[3] for row in fusions])


def _streams_of_table(
  stream: str, layers: Sequence[Any]
) -> tuple[Sequence[int], Sequence[int], list[list[Any]]]:
  """Widths and depths of the stages that the layers of one stream say, and the rows of both."""
  rows = []
  if stream == 'csp_darknet':
    stages = layers[2:9:2]
    widths = [layers[0][3][0], *(row[3][0] for row in stages)]
    depths = [row[1] for row in stages]
    for start in (-1, -4):
      rows += _darknet(widths, depths, start)
  elif stream == 'resnet':
    widths, depths = [row[3][1] for row in layers], [row[3][4] for row in layers[1:]]
    for start in (-1, -4):
      inputs = [widths[0], *(4 * width for width in widths[1:])]
      rows.append([start, 1, 'ResNetlayer', [3, widths[0], 1, True, 1]])
      for s, (width, depth) in enumerate(zip(widths[1:], depths, strict=True)):
        rows.append([-1, 1, 'ResNetlayer', [inputs[s], width, 2 if s else 1, False, depth]])
  else:
    widths, depths = [row[3][2] for row in layers], [row[3][0] for row in layers]
    for start in (-1, -4):
      for s, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        rows.append([-1 if s else start, 1, 'VGGblock', [depth, widths[s - 1] if s else 3, width]])
  return widths, depths, rows


def _fields_of_fusions(fusion: str, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
  """The fields that the arguments of the three fusions say; a transformer's first has no effect."""
  if fusion != 'transformer':
    if fusion == 'nin' and any(value != 1 for row in rows for value in row):
      raise arguments.ArgumentError(f'NiNfusion has the arguments {rows}; only 1 can be replayed')
    return {}
  fields: dict[str, Any] = {'grids': tuple(tuple(row[1:3]) for row in rows)}
  if any(len(grid) < 2 for grid in fields['grids']):
    raise arguments.ArgumentError(f'TransformerFusionBlock has the arguments {rows}, and no grids')
  if any(row[3:] != rows[0][3:] or len(row) > 6 for row in rows):
    raise arguments.ArgumentError(
      f'TransformerFusionBlock has the arguments {rows}; after the grid only heads, block_exp and '
      'n_layer can be replayed, the same for all'
    )
  names = ('num_heads', 'mlp_ratio', 'fusion_depth')
  return fields | dict(zip(names, rows[0][3:], strict=False))


def _plain(head: Sequence[Any]) -> list[list[Any]]:
  """The head with the words that the original evaluates."""
  return [
    [source, count, layer, ['None' if value is None else value for value in values]]
    for source, count, layer, values in head
  ]


def _in_order(sizes: tuple[Any, ...]) -> tuple[Any, ...]:
  """The original's levels have larger anchors at larger strides, however they are given."""
  areas = [sum(width * height for width, height in level) for level in sizes]
  return sizes if areas[0] <= areas[-1] else sizes[::-1]


def _darknet(widths: Sequence[int], depths: Sequence[int], start: int) -> list[list[Any]]:
  rows = [[start, 1, 'Conv', [widths[0], 6, 2, 2]]]
  for width, depth in zip(widths[1:], depths, strict=True):
    rows += [[-1, 1, 'Conv', [width, 3, 2]], [-1, depth, 'C3', [width]]]
  return [*rows, [-1, 1, 'SPPF', [widths[-1], 5]]]


def _neck(widths: Sequence[int], depth: int, first: int) -> list[list[Any]]:
  """The rows of the neck and the head, whose first layers are those of the fusions."""
  upsample = [-1, 1, 'nn.Upsample', ['None', 2, 'nearest']]

  def concatenate(layer: int) -> list[Any]:
    return [[-1, layer], 1, 'Concat', [1]]

  def stage(part: int) -> list[Any]:
    return [-1, depth, 'C3', [widths[part], False]]

  return [
    [-1, 1, 'Conv', [widths[0], 1, 1]],
    upsample,
    concatenate(first + 1),
    stage(1),
    [-1, 1, 'Conv', [widths[2], 1, 1]],
    upsample,
    concatenate(first),
    stage(3),
    [-1, 1, 'Conv', [widths[4], 3, 2]],
    concatenate(first + 7),
    stage(5),
    [-1, 1, 'Conv', [widths[6], 3, 2]],
    concatenate(first + 3),
    stage(7),
    [[first + i for i in (10, 13, 16)], 1, 'Detect', ['nc', 'anchors']],
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
