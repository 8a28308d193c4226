"""Detectors of mmdetection beside their PyTorch original, on the backbone of any system."""

from collections.abc import Mapping, Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.conversion.layouts import channels_last
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine
from crossattn_jax.conversion.systems import crossformer, mmsegmentation
from crossattn_jax.models import detector

Arrays = dict[str, jax.Array]

RETINANET_HEAD = [
  *affine('cls_convs.{i}.conv', 'class_conv_{i}', 'conv'),
  *affine('reg_convs.{i}.conv', 'box_conv_{i}', 'conv'),
  *affine('retina_cls', 'classifier', 'conv'),
  *affine('retina_reg', 'regressor', 'conv'),
]
PROPOSAL_HEAD = [
  *affine('rpn_conv', 'conv', 'conv'),
  *affine('rpn_cls', 'objectness', 'conv'),
  *affine('rpn_reg', 'regressor', 'conv'),
]
BOX_HEAD = [
  *affine('shared_fcs.0', 'fc1', 'linear_map_in'),
  *affine('shared_fcs.1', 'fc2', 'linear'),
  *affine('fc_cls', 'classifier', 'linear'),
  *affine('fc_reg', 'regressor', 'linear_heads_out'),
]
MASK_HEAD = [
  *affine('convs.{i}.conv', 'conv_{i}', 'conv'),
  *affine('upsample', 'upsample', 'transposed_conv'),
  *affine('conv_logits', 'classifier', 'conv'),
]
REGION_HEAD = [
  *prefixed(BOX_HEAD, 'bbox_head.', 'box_head/'),
  *prefixed(MASK_HEAD, 'mask_head.', 'mask_head/'),
]
HEADS = [
  *prefixed(mmsegmentation.PYRAMID, 'neck.', 'pyramid/'),
  *prefixed(RETINANET_HEAD, 'bbox_head.', 'head/'),
  *prefixed(PROPOSAL_HEAD, 'rpn_head.', 'proposal_head/'),
  *prefixed(REGION_HEAD, 'roi_head.', 'region_head/'),
]


def detector_rules(module: detector.Detector) -> list[Rule]:
  """The rules of a backbone with its heads."""
  return [
    *prefixed(correspondence.backbone_rules(module.backbone), 'backbone.', 'backbone/'),
    *HEADS,
  ]


def detector_of(
  shapes: Mapping[str, Sequence[int]],
) -> tuple[type[detector.Detector], dict[str, int]]:
  """The class and the fields of the detector that a state dict is of.

  Args:
    shapes: of the tensors by their keys; they say which heads it has and how wide they are.

  Raises:
    mapping.MappingError: the state dict has no such heads.
  """
  classifier = shapes.get('bbox_head.retina_cls.weight')
  regressor = shapes.get('bbox_head.retina_reg.weight')
  if classifier is None or regressor is None:
    raise mapping_lib.MappingError(
      'no detector of mmdetection that is known here: it has neither bbox_head.retina_cls.weight '
      f'nor roi_head.bbox_head.fc_cls.weight; its keys begin with '
      f'{", ".join(sorted({key.split(".")[0] for key in shapes}))}'
    )
  return detector.RetinaNet, {
    'num_classes': classifier[0] // (regressor[0] // 4),
    'head_channels': classifier[1],
  }


@correspondence.register_models('mmdetection', '+retinanet')
def describe(module: detector.Detector) -> correspondence.Correspondence:
  """Says how a backbone with the heads of a detector corresponds to mmdetection's."""
  shape = (1, module.backbone.num_channels, *module.image_size)

  def call(network: nn.Module, inputs: Arrays) -> Arrays:
    return network(channels_last(inputs['image']))[0]

  def fields(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    network, found = detector_of(shapes)
    if not isinstance(module, network):
      raise mapping_lib.MappingError(
        f'the checkpoint is of {network.__name__}, not of {type(module).__name__}'
      )
    if 'neck.lateral_convs.0.conv.weight' in shapes:
      found |= {'pyramid_channels': shapes['neck.lateral_convs.0.conv.weight'][0]}
    return found

  return correspondence.Correspondence(
    rules=detector_rules(module),
    call=call,
    inputs={'image': jax.ShapeDtypeStruct(shape, jnp.float32)},
    classifier_rules=correspondence.classifier_rules(module.backbone),
    fields=fields,
    settings=crossformer.dense_settings,
  )
