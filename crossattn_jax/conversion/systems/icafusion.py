"""ICAFusion beside its PyTorch original: chanchanchan97/ICAFusion."""

from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, batch_norm, conv_norm, norm

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
  *(
    rule
    for i in range(3)
    for rule in conv_norm(
      f'layer.{{j}}.conv{i + 1}', f'layer.{{j}}.bn{i + 1}', f'block_{{j}}/conv_{i}'
    )
  ),
  *conv_norm('layer.{j}.shortcut.0', 'layer.{j}.shortcut.1', 'block_{j}/shortcut'),
]
# Of a `YoloHead`; anchors are arguments here, not buffers.
YOLO_HEAD = [
  *affine('m.{i}', 'level_{i}', 'conv'),
  *(Rule(buffer, None) for buffer in ('anchors', 'anchor_grid')),
]
