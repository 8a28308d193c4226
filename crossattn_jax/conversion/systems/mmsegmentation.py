"""Heads of mmsegmentation beside their PyTorch original, on the backbone of any system."""

from collections.abc import Mapping, Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, conv_norm
from crossattn_jax.conversion.systems import crossformer
from crossattn_jax.heads.segmentation import pyramid_pooling
from crossattn_jax.models import segmentor

Arrays = dict[str, jax.Array]


def _unit(torch: str, flax: str) -> list[Rule]:
  """The rules of a convolution with norm and activation."""
  return conv_norm(f'{torch}.conv', f'{torch}.bn', flax)


PYRAMID = [
  *affine('lateral_convs.{i}.conv', 'lateral_{i}', 'conv'),
  *affine('fpn_convs.{i}.conv', 'output_{i}', 'conv'),
  *_unit('lateral_convs.{i}', 'lateral_{i}'),
  *_unit('fpn_convs.{i}', 'output_{i}'),
]
FCN_HEAD = [*_unit('convs.0', 'conv'), *affine('conv_seg', 'classifier', 'conv')]


def fpn_head_rules(levels: int = 4) -> list[Rule]:
  """The rules of Semantic FPN's head."""
  rules = affine('conv_seg', 'classifier', 'conv')
  for level in range(levels):
    for i in range(max(1, level)):
      rules += _unit(f'scale_heads.{level}.{2 * i}', f'level_{level}_conv_{i}')
  return rules


def semantic_fpn_rules(levels: int = 4) -> list[Rule]:
  """The rules of a feature pyramid with Semantic FPN's head."""
  return [
    *prefixed(PYRAMID, 'neck.', 'pyramid/'),
    *prefixed(fpn_head_rules(levels), 'decode_head.', 'decoder/'),
  ]


def uper_head_rules(scales: Sequence[int] = pyramid_pooling.SCALES) -> list[Rule]:
  """The rules of UPerNet's head, with pyramid pooling to so many bins per side."""
  rules = [
    *_unit('bottleneck', 'top/fusion'),
    *_unit('lateral_convs.{i}', 'lateral_{i}'),
    *_unit('fpn_convs.{i}', 'output_{i}'),
    *_unit('fpn_bottleneck', 'fusion'),
    *affine('conv_seg', 'classifier', 'conv'),
  ]
  for i, scale in enumerate(scales):
    rules += _unit(f'psp_modules.{i}.1', f'top/pool_{scale}')
  return rules


def upernet_rules(scales: Sequence[int] = pyramid_pooling.SCALES) -> list[Rule]:
  """The rules of UPerNet's head and of the auxiliary one."""
  return [
    *prefixed(uper_head_rules(scales), 'decode_head.', 'decoder/'),
    *prefixed(FCN_HEAD, 'auxiliary_head.', 'auxiliary_head/'),
  ]


def segmentor_rules(module: segmentor.Segmentor) -> list[Rule]:
  """The rules of a backbone with its heads."""
  is_fpn = isinstance(module, segmentor.SemanticFPN)
  heads = prefixed(semantic_fpn_rules(), '', 'decoder/') if is_fpn else upernet_rules()
  return [
    *prefixed(correspondence.backbone_rules(module.backbone), 'backbone.', 'backbone/'),
    *heads,
  ]


def segmentor_of(
  shapes: Mapping[str, Sequence[int]],
) -> tuple[type[segmentor.Segmentor], dict[str, int]]:
  """The class and the fields of the segmentor that a state dict is of.

  Args:
    shapes: of the tensors by their keys; they say which head it is and how wide.

  Raises:
    mapping.MappingError: the state dict has neither head.
  """
  classifier = shapes.get('decode_head.conv_seg.weight')
  if classifier is None:
    raise mapping_lib.MappingError(
      'no segmentor of mmsegmentation: it has no decode_head.conv_seg.weight; its keys begin '
      f'with {", ".join(sorted({key.split(".")[0] for key in shapes}))}'
    )
  fields = {'num_classes': classifier[0], 'head_channels': classifier[1]}
  if 'neck.lateral_convs.0.conv.weight' in shapes:
    pyramid_channels = shapes['neck.lateral_convs.0.conv.weight'][0]
    return segmentor.SemanticFPN, fields | {'pyramid_channels': pyramid_channels}
  auxiliary = shapes.get('auxiliary_head.conv_seg.weight', (0, 0))
  return segmentor.UPerNet, fields | {'auxiliary_channels': auxiliary[1]}


@correspondence.register_models('mmsegmentation', '+semantic_fpn')
@correspondence.register_models('mmsegmentation', '+upernet')
def describe(module: segmentor.Segmentor) -> correspondence.Correspondence:
  """Says how a backbone with a head corresponds to mmsegmentation's."""
  shape = (1, module.backbone.num_channels, *module.image_size)

  def call(network: nn.Module, inputs: Arrays) -> Arrays:
    logits, _ = network(channels_last(inputs['image']))
    return {'logits': channels_first(logits)}

  def fields(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    network, found = segmentor_of(shapes)
    if not isinstance(module, network):
      raise mapping_lib.MappingError(
        f'the checkpoint is of {network.__name__}, not of {type(module).__name__}'
      )
    return found

  is_fpn = isinstance(module, segmentor.SemanticFPN)
  return correspondence.Correspondence(
    rules=segmentor_rules(module),
    call=call,
    inputs={'image': jax.ShapeDtypeStruct(shape, jnp.float32)},
    heads=('decoder/decoder/classifier',)
    if is_fpn
    else ('decoder/classifier', 'auxiliary_head/classifier'),
    classifier_rules=correspondence.classifier_rules(module.backbone),
    fields=fields,
    settings=crossformer.dense_settings,
  )
