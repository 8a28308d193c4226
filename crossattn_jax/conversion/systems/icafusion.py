"""ICAFusion beside its PyTorch original: chanchanchan97/ICAFusion."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.conversion import rules as rules_lib
from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, batch_norm, conv_norm, norm
from crossattn_jax.heads.detection import anchors as anchors_lib
from crossattn_jax.heads.detection import yolo
from crossattn_jax.models import icafusion

Arrays = dict[str, jax.Array]

# The original's names of the modalities.
_MODALITIES = {'vis': 'rgb', 'ir': 'thermal'}


def attention_rules() -> list[Rule]:
  """The rules of a `DualCrossAttention`."""
  rules = [*norm('LN1', 'rgb/norm'), *norm('LN2', 'thermal/norm')]
  for torch, flax in _MODALITIES.items():
    for short, long in (('que', 'query'), ('key', 'key'), ('val', 'value')):
      rules += affine(f'{short}_proj_{torch}', f'{flax}/{long}', 'linear_heads_out')
    rules += affine(f'out_proj_{torch}', f'{flax}/out', 'linear_heads_in')
  return rules


def block_rules(unused_parameters: bool = False) -> list[Rule]:
  """The rules of an `IterativeCrossModalBlock`; what it never uses is kept where it holds it."""
  unused = r'{any:(ln_input|ln_output|LN1|mlp\.[02])\.(weight|bias)}'
  rules = [
    *prefixed(attention_rules(), 'crossatt.', 'attention/'),
    *norm('LN2', 'norm'),
    Rule(unused, unused if unused_parameters else None, collection='unused'),
  ]
  coefficient = 1
  for part in ('attention', 'mlp'):
    for flax in _MODALITIES.values():
      for weight in ('kept', 'added'):
        path = f'{part}_sum_{flax}/{weight}'
        rules.append(Rule(f'coefficient{coefficient}.bias', path, 'unbatched'))
        coefficient += 1
  for torch, flax in _MODALITIES.items():
    rules += affine(f'mlp_{torch}.0', f'mlp_{flax}/fc1') + affine(
      f'mlp_{torch}.2', f'mlp_{flax}/fc2'
    )
  return rules


def shrinking_rules(modality: str) -> list[Rule]:
  """The rules of the `SpatialShrinking` of a modality, 'vis' or 'ir', with free weights."""
  weights = enumerate(('average', 'maximum'), 1)
  return [Rule(f'{modality}_coefficient.w{i}', name, 'unbatched') for i, name in weights]


def transformer_fusion_rules(unused_parameters: bool = False) -> list[Rule]:
  """The rules of a `TransformerFusion`."""
  rules = [
    *prefixed(block_rules(unused_parameters), 'crosstransformer.{k}.', 'block_{k}/'),
    *conv_norm('conv1x1_out.conv', 'conv1x1_out.bn', 'join'),
  ]
  for torch, flax in _MODALITIES.items():
    rules.append(Rule(f'pos_emb_{torch}', f'positions_{flax}', 'unbatched'))
    rules += prefixed(shrinking_rules(torch), flax=f'shrinking_{flax}/')
  return rules


# What a block of the original never uses, and what it uses of the same shapes.
_UNUSED = {
  'ln_input': 'LN2',
  'ln_output': 'LN2',
  'LN1': 'LN2',
  'mlp.0': 'mlp_vis.0',
  'mlp.2': 'mlp_vis.2',
}

# Of a `ConvolutionFusion`.
CONVOLUTION_FUSION = [Rule('conv.weight', 'conv/kernel', 'conv')]

# Backbones and neck. Of a `ConvUnit`:
CONV_UNIT = [*affine('conv', 'conv', 'conv'), *batch_norm('bn', 'norm')]
# Of a `CrossStage`:
CROSS_STAGE = [
  *prefixed(CONV_UNIT, 'cv1.', 'deep/'),
  *prefixed(CONV_UNIT, 'cv2.', 'beside/'),
  *prefixed(CONV_UNIT, 'cv3.', 'join/'),
  *prefixed(CONV_UNIT, 'm.{j}.cv1.', 'block_{j}/conv_0/'),
  *prefixed(CONV_UNIT, 'm.{j}.cv2.', 'block_{j}/conv_1/'),
]
# Of a `SpatialPyramidPooling`:
SPATIAL_PYRAMID_POOLING = [
  *prefixed(CONV_UNIT, 'cv1.', 'reduce/'),
  *prefixed(CONV_UNIT, 'cv2.', 'join/'),
]
# Of a `vgg.Block`:
VGG_BLOCK = affine('vggblock.{j}.0', 'conv_{j}', 'conv')


# Of a `resnet.Stem` and a `resnet.Stage`:
RESNET_STEM = conv_norm('layer.0', 'layer.1', 'conv')
RESNET_STAGE = [
  *conv_norm('layer.{j}.shortcut.0', 'layer.{j}.shortcut.1', 'block_{j}/shortcut'),
  *prefixed(rules_lib.BOTTLENECK, 'layer.{j}.', 'block_{j}/'),
]


def classifier_rules(module: icafusion.ICAFusion) -> list[Rule]:
  """The rules between a stream and the classifier of torchvision that it may start from."""
  if module.stream == 'resnet':
    return [*rules_lib.resnet(), Rule('fc.{leaf:weight|bias}', None)]
  if module.stream == 'vgg':
    rules, layer = [Rule('classifier.{i}.{leaf:weight|bias}', None)], 0
    for s, depth in enumerate(module.depths):
      for i in range(depth):
        rules += affine(f'features.{layer + 2 * i}', f'block_{s}/conv_{i}', 'conv')
      layer += 2 * depth + 1  # A ReLU after each, and a pool.
    return rules
  return []


# Of a `YoloHead`; anchors are arguments here, not buffers.
YOLO_HEAD = [
  *affine('m.{i}', 'level_{i}', 'conv'),
  *(Rule(buffer, None) for buffer in ('anchors', 'anchor_grid')),
]

# Of the streams, the neck and the head, in the original's order: where a layer's counterpart is,
# and its rules. None has no parameters.
_Layers = list[tuple[str, list[Rule]] | None]
_STREAMS: dict[str, _Layers] = {
  'csp_darknet': [
    ('stem', CONV_UNIT),
    *(
      layer for s in range(4) for layer in ((f'reduce_{s}', CONV_UNIT), (f'stage_{s}', CROSS_STAGE))
    ),
    ('pooled', SPATIAL_PYRAMID_POOLING),
  ],
  'resnet': [('stem', RESNET_STEM), *((f'stage_{s}', RESNET_STAGE) for s in range(4))],
  'vgg': [(f'block_{s}', VGG_BLOCK) for s in range(5)],
}
_NECK_AND_HEAD: _Layers = [
  ('neck/reduce_0', CONV_UNIT),
  None,
  None,
  ('neck/up_0', CROSS_STAGE),
  ('neck/reduce_1', CONV_UNIT),
  None,
  None,
  ('neck/up_1', CROSS_STAGE),
  ('neck/shrink_0', CONV_UNIT),
  None,
  ('neck/down_0', CROSS_STAGE),
  ('neck/shrink_1', CONV_UNIT),
  None,
  ('neck/down_1', CROSS_STAGE),
  ('head', YOLO_HEAD),
]


def _layers(module: icafusion.ICAFusion) -> _Layers:
  """The layers of a whole model, by the original's numbers; of a single stream, by YOLOv5's."""
  layers = [
    (f'stream_{modality}/{path}', rules)
    for modality in module.modalities
    for path, rules in _STREAMS[module.stream]
  ]
  if len(module.modalities) == 1:
    return [*layers, *_NECK_AND_HEAD]
  fusion = {
    'transformer': transformer_fusion_rules(module.unused_parameters),
    'nin': CONVOLUTION_FUSION,
  }.get(module.fusion, [])
  return [*layers, *((f'fusion_{level}', fusion) for level in (3, 4, 5)), *_NECK_AND_HEAD]


def model_rules(module: icafusion.ICAFusion) -> list[Rule]:
  """The rules of a whole model; what it never uses is kept where it holds it."""
  rules = []
  for i, layer in enumerate(_layers(module)):
    if layer is not None:
      rules += prefixed(layer[1], f'model.{i}.', f'{layer[0]}/')
  return rules


def model_taps(module: icafusion.ICAFusion) -> dict[str, correspondence.TapLike | None]:
  """The taps of a whole model: what its layers return, but the head."""
  layers = _layers(module)[:-1]
  return {
    f'model.{i}': (layer[0], channels_first) for i, layer in enumerate(layers) if layer is not None
  }


def original_maps(grid: anchors_lib.AnchorGrid, rows: jax.Array) -> list[jax.Array]:
  """Rows `[batch, anchors, n]` as maps of the levels, `[batch, per_cell, height, width, n]`."""
  batch, _, channels = rows.shape
  return [
    jnp.moveaxis(rows[:, level].reshape(batch, *size, grid.anchors.per_cell, channels), 3, 1)
    for level, size in zip(grid.levels, grid.map_sizes, strict=True)
  ]


def original_outputs(
  outputs: Mapping[str, jax.Array], grid: anchors_lib.AnchorGrid, names: Sequence[str]
) -> Arrays:
  """What the original returns, of the outputs of a `YoloHead`.

  Args:
    outputs: of the head.
    grid: the anchors.
    names: of the levels.

  Returns:
    'decoded' and 'class_logits', every level's anchors of a kind one after another, and 'raw_NAME'
    of the levels.
  """
  raw = [outputs['box_logits'], outputs['objectness'][..., None], outputs['logits']]
  decoded = yolo.decode_boxes(outputs['box_logits'], grid)
  decoded = jnp.concatenate([decoded, *map(nn.sigmoid, raw[1:])], axis=-1)

  def in_a_row(rows: jax.Array) -> jax.Array:
    maps = original_maps(grid, rows)
    return jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1)

  maps = original_maps(grid, jnp.concatenate(raw, axis=-1))
  return {
    'decoded': in_a_row(decoded),
    'class_logits': in_a_row(outputs['logits']),
    **{f'raw_{name}': x for name, x in zip(names, maps, strict=True)},
  }


def told_fields(module: icafusion.ICAFusion, shapes: correspondence.Shapes) -> Mapping[str, Any]:
  """The fields of a model that the shapes of a state dict tell, by their keys.

  Raises:
    mapping.MappingError: it is of a YOLOv5 whose layers are others.
  """
  if 'model.0.conv.conv.weight' in shapes:
    raise mapping_lib.MappingError(
      'the weights are of a YOLOv5 before v6.0: its first layer is a Focus '
      '(model.0.conv.conv.weight), layer 8 an SPP; take the file of the same size of v6.0 or later'
    )
  both = tuple(_MODALITIES.values())
  alone = module.modalities if len(module.modalities) == 1 else both[:1]
  fields: dict[str, Any] = {}
  for modalities in (both, alone):
    head = f'{_head(module.clone(modalities=modalities))}.m.0.bias'
    if head in shapes:
      classes = shapes[head][0] // module.anchors().per_cell - 5
      fields = {'modalities': modalities, 'num_classes': classes}
  fusion = f'model.{2 * len(_STREAMS[module.stream])}'
  if f'{fusion}.pos_emb_vis' in shapes:
    blocks = f'{fusion}.crosstransformer.'
    depth = {key.removeprefix(blocks).split('.')[0] for key in shapes if key.startswith(blocks)}
    fields |= {'fusion': 'transformer', 'fusion_depth': len(depth)}
  elif fields.get('modalities') == both:
    if f'{fusion}.conv.weight' in shapes:
      fields['fusion'] = 'nin'
    elif module.fusion not in ('add', 'add_official'):
      fields['fusion'] = 'add_official'
  return fields


def told_anchors(module: icafusion.ICAFusion, state: correspondence.State) -> Mapping[str, Any]:
  """The anchors that a state dict holds, which may have been computed from its data."""
  head, strides = _head(module), np.reshape(module.anchors().strides, (-1, 1, 1))
  if f'{head}.anchor_grid' in state:
    sizes = state[f'{head}.anchor_grid']
  elif f'{head}.anchors' in state:
    sizes = state[f'{head}.anchors'] * strides
  else:
    return {}
  levels = np.reshape(sizes, (len(strides), -1, 2)).tolist()
  return {'anchor_sizes': tuple(tuple(map(tuple, level)) for level in levels)}


def unmapped(module: icafusion.ICAFusion, state: correspondence.State) -> correspondence.State:
  """The anchors, and zeros for what the original never uses."""
  head, strides = _head(module), np.reshape(module.anchors().strides, (-1, 1, 1))
  sizes = np.asarray(module.anchor_sizes, np.float32)
  found = {f'{head}.anchors': sizes / strides.astype(np.float32)}
  if len(module.modalities) == 2:  # YOLOv5 has no other.
    found[f'{head}.anchor_grid'] = sizes[:, None, :, None, None]
  for key in [key for key in state if key.endswith('.coefficient1.bias')]:
    block = key.removesuffix('coefficient1.bias')
    for unused, used in _UNUSED.items():
      for leaf in ('weight', 'bias'):
        found[f'{block}{unused}.{leaf}'] = np.zeros_like(state[f'{block}{used}.{leaf}'])
  return found


def _head(module: icafusion.ICAFusion) -> str:
  """The prefix of the head's keys."""
  return f'model.{len(_layers(module)) - 1}'


@correspondence.register_models('icafusion', 'icafusion_*')
def describe(module: icafusion.ICAFusion) -> correspondence.Correspondence:
  """Says how a registered ICAFusion corresponds to the official model, or to YOLOv5 v6."""
  image = correspondence.image_input(module)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    rgb, thermal = channels_last(inputs['rgb']), channels_last(inputs['ir'])
    outputs, _ = model(rgb, thermal)
    grid = model.anchors().of_input(rgb.shape[1:3])
    return original_outputs(outputs, grid, ('p3', 'p4', 'p5'))

  return correspondence.Correspondence(
    rules=model_rules(module),
    call=call,
    inputs={'rgb': image, 'ir': image},
    taps=model_taps(module),
    classifier_rules=classifier_rules(module),
    backbones=[f'stream_{modality}' for modality in module.modalities],
    fields=lambda shapes: told_fields(module, shapes),
    buffers=lambda state: told_anchors(module, state),
    besides=lambda state: unmapped(module, state),
  )
