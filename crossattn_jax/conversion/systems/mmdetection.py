"""Detectors of mmdetection beside their PyTorch original, on the backbone of any system."""

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


def head_of(shapes: correspondence.Shapes) -> tuple[str, dict[str, int]]:
  """The head of the detector that a state dict is of, as its name has it, and the fields it tells.

  Args:
    shapes: of the tensors by their keys; they say which heads it has, how wide and deep they are.

  Raises:
    mapping.MappingError: the state dict has no such head.
  """

  def outputs(layer: str) -> int:
    return shapes.get(f'{layer}.weight', (0,))[0]

  def count(convs: str) -> int:
    return sum(key.startswith(f'{convs}.') and key.endswith('.weight') for key in shapes)

  pyramid = {'pyramid_channels': outputs('neck.lateral_convs.0.conv')}
  anchors = outputs('bbox_head.retina_reg') // 4
  if anchors:
    return 'retinanet', pyramid | {
      'num_classes': outputs('bbox_head.retina_cls') // anchors,
      'head_channels': outputs('bbox_head.cls_convs.0.conv'),
      'head_convs': count('bbox_head.cls_convs'),
    }
  regions = 'roi_head.bbox_head'
  if outputs(f'{regions}.fc_cls'):
    masks = outputs('roi_head.mask_head.conv_logits')
    fields = pyramid | {
      'num_classes': outputs(f'{regions}.fc_cls') - 1,
      'head_channels': outputs(f'{regions}.shared_fcs.0'),
      'mask_channels': outputs('roi_head.mask_head.upsample'),
    }
    if masks:
      fields['mask_convs'] = count('roi_head.mask_head.convs')
    return 'mask_rcnn' if masks else 'faster_rcnn', fields
  raise mapping_lib.MappingError(
    'no RetinaNet, Faster or Mask R-CNN of mmdetection: it has neither bbox_head.retina_reg.weight '
    'nor roi_head.bbox_head.fc_cls.weight; its keys begin with '
    f'{", ".join(sorted({key.split(".")[0] for key in shapes}))}'
  )


@correspondence.register_models('mmdetection', '+retinanet')
@correspondence.register_models('mmdetection', '+faster_rcnn')
@correspondence.register_models('mmdetection', '+mask_rcnn')
def describe(module: detector.Detector) -> correspondence.Correspondence:
  """Says how a backbone with the heads of a detector corresponds to mmdetection's."""
  shape = (1, module.backbone.num_channels, *module.image_size)
  head = 'retinanet'
  if isinstance(module, detector.MaskRCNN):
    head = 'mask_rcnn' if module.mask_channels else 'faster_rcnn'

  def call(network: nn.Module, inputs: Arrays) -> Arrays:
    outputs, _ = network(channels_last(inputs['image']))
    return outputs

  def fields(shapes: correspondence.Shapes) -> dict[str, int]:
    found, told = head_of(shapes)
    if found != head:
      raise mapping_lib.MappingError(f'the checkpoint is of {found!r}, not of {head!r}')
    return told

  return correspondence.Correspondence(
    rules=detector_rules(module),
    call=call,
    inputs={'image': jax.ShapeDtypeStruct(shape, jnp.float32)},
    classifier_rules=correspondence.classifier_rules(module.backbone),
    fields=fields,
    settings=crossformer.dense_settings,
  )
