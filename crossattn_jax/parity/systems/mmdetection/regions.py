"""Cases of the second stage of mmdetection's detectors, and of Mask R-CNN as a whole."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.systems import mmdetection as rules
from crossattn_jax.geometry import assignment
from crossattn_jax.heads.detection import mask_head, region_head, rpn, types
from crossattn_jax.heads.detection import regions as regions_lib
from crossattn_jax.models import detector
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.mmdetection import configs, heads
from crossattn_jax.tasks.detection import losses, region_losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


@adapters.register_adapter('crossformer', 'det_loss_ce_variants')
def _cross_entropies(manifest: Manifest) -> adapters.Adapter:
  number = manifest['constructor']['avg_factor']

  def run(
    rpn_logits: jax.Array,
    rpn_labels: jax.Array,
    weights: jax.Array,
    cls_logits: jax.Array,
    cls_labels: jax.Array,
    mask_logits: jax.Array,
    mask_targets: jax.Array,
    mask_labels: jax.Array,
  ) -> Arrays:
    is_object = (rpn_labels == 0).astype(rpn_logits.dtype)
    terms = optax.losses.sigmoid_binary_cross_entropy(rpn_logits[:, 0], is_object)
    return {
      'rpn': jnp.sum(weights * terms) / (number + losses.EPS),
      'rcnn': region_losses.class_loss(cls_logits, cls_labels, weights, number),
      'mask': region_losses.mask_loss(
        channels_last(mask_logits), mask_targets, mask_labels, mask_labels >= 0
      ),
    }

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('crossformer', 'det_mask_head')
def _mask_head(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('in_channels')  # The input has them.
  module = mask_head.MaskHead(
    c.get('num_classes', 80), c.get('conv_out_channels', 256), c.get('num_convs', 4)
  )

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    logits, labels = module(channels_last(inputs['x'])), inputs['labels']
    loss = region_losses.mask_loss(logits, inputs['t'], labels, labels >= 0)
    return {'logits': channels_first(logits), 'loss': loss}

  return adapters.module_adapter(manifest, module, rules=rules.MASK_HEAD, call=call)


def _region_head(c: arguments.Arguments) -> region_head.RegionHead:
  c.ignore('channels')  # The maps have them.
  return region_head.RegionHead(
    num_classes=c['num_classes'],
    channels=c['fc_out_channels'],
    mask_channels=c.get('mask_channels', c['channels']),
    box_side=c['bbox_roi_size'],
    mask_side=c['mask_roi_size'],
    strides=tuple(c['featmap_strides']),
  )


def _truths(inputs: Arrays) -> types.Truths:
  """The objects of all images, with masks."""
  truths = configs.truths(inputs)
  count, most = truths.labels.shape
  masks = [inputs[f'gt_masks_{i}'].astype(bool) for i in range(count)]
  padded = [jnp.pad(x, ((0, most - len(x)), (0, 0), (0, 0))) for x in masks]
  return truths.replace(masks=jnp.stack(padded))


def _levels(inputs: Arrays) -> list[jax.Array]:
  """The maps 'c2', 'c3', ..., which stand for the pyramid's."""
  names = sorted(name for name in inputs if name[0] == 'c' and name[1:].isdecimal())
  return [channels_last(inputs[name]) for name in names]


def _stack(boxes: Sequence[jax.Array]) -> jax.Array:
  """Boxes of several images, `[count, 4]` each, as a padded batch."""
  most = max(len(x) for x in boxes)
  return jnp.stack([jnp.pad(x, ((0, most - len(x)), (0, 0))) for x in boxes])


def _first_regions(
  proposals: jax.Array,
  truths: types.Truths,
  number: int,
  positive_fraction: float,
  with_truths: bool,
  **thresholds: float,
) -> Arrays:
  """As `regions.sample`, but for the draw: it takes the first regions, objects before proposals."""

  def of_image(proposals: jax.Array, boxes: jax.Array, labels: jax.Array) -> Arrays:
    regions, assigned = regions_lib.assign(proposals, boxes, labels >= 0, **thresholds)
    regions, assigned = (jnp.roll(x, len(boxes), axis=0) for x in (regions, assigned))
    if not with_truths:
      assigned = assigned.at[: len(boxes)].set(assignment.IGNORED)
    indices, drawn = assignment.sample(None, assigned, number, positive_fraction)
    assigned = jnp.where(drawn, assigned[indices], assignment.IGNORED)
    return {'proposals': regions[indices], 'assigned': assigned}

  return jax.vmap(of_image)(proposals, truths.boxes, truths.labels)


def _losses(
  head: region_head.RegionHead,
  levels: Sequence[jax.Array],
  proposals: jax.Array,
  truths: types.Truths,
  sampling: Mapping[str, Any],
  stds: Sequence[float],
) -> Arrays:
  """The losses of a sample of proposals, by the original's names."""
  outputs = _first_regions(proposals, truths, **sampling)
  regions = outputs['proposals']
  outputs['class_logits'], outputs['box_deltas'] = head.boxes(levels, regions)
  positives = int(sampling['number'] * sampling['positive_fraction'])
  outputs['mask_logits'] = head.masks(levels, regions[:, :positives])
  found = region_losses.region_losses(outputs, truths, stds=stds)
  return {
    'loss_cls': found['class_loss'],
    'loss_bbox': found['box_loss'],
    'loss_mask': found['mask_loss'],
    'acc': 100 * found['region_accuracy'],
  }


@adapters.register_adapter('crossformer', 'det_roi_head_losses')
def _second_stage(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  module, stds = _region_head(c), c['target_stds']
  c.ignore('mask_size', only=(2 * module.mask_side,))
  c.ignore('image')  # The masks have its size.
  sampling = {
    'number': c['sampler_num'],
    'positive_fraction': c['sampler_pos_fraction'],
    'with_truths': c['add_gt_as_proposals'],
    **configs.assigner(c),
  }

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    truths = _truths(inputs)
    proposals = _stack([inputs[f'proposals_{i}'] for i in range(len(truths.boxes))])
    return _losses(module, _levels(inputs), proposals, truths, sampling, stds)

  return adapters.module_adapter(
    manifest, module, rules=rules.REGION_HEAD, call=call, without_gradient=('acc',)
  )


@adapters.register_adapter('crossformer', 'det_roi_head_predict')
def _predictions(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  module = _region_head(c)
  thresholds = {
    'score_threshold': c['score_thr'],
    'iou_threshold': c['iou_threshold'],
    'max_boxes': c['max_per_img'],
    'stds': c['target_stds'],
  }
  # The original divides boxes by the factor in single precision, and multiplies them by it again.
  size, factor, divisor = jnp.array([c['image']]), c['scale_factor'], c['boxes_divided_by']
  count = manifest['shapes']['out/scores'][0]  # The original returns as many as there are.

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    levels, regions = _levels(inputs), inputs['proposals'][None]
    found = regions_lib.decode(*module.boxes(levels, regions), regions, size, **thresholds)
    boxes = found.boxes / divisor
    masks = mask_head.of_class(module.masks(levels, boxes * factor), found.labels)
    outputs = {
      'boxes': boxes,
      'scores': found.scores,
      'labels': found.labels,
      'mask_prob': nn.sigmoid(masks),
    }
    return {name: x[0, :count] for name, x in outputs.items()}

  return adapters.module_adapter(manifest, module, rules=rules.REGION_HEAD, call=call)


def mask_rcnn_adapter(manifest: Manifest, backbone: nn.Module) -> adapters.Adapter:
  """The adapter of the losses of Mask R-CNN on a backbone, built of the rest of the constructor.

  Raises:
    arguments.ArgumentError: the detector is none that can be built.
  """
  c = manifest['constructor']
  neck, proposal, sampler = c['neck'], c['rpn_proposal'], c['rpn_sampler']
  neck.ignore('start_level', only=(0,))
  neck.ignore('end_level', only=(-1, 3))
  neck.ignore('num_outs', only=(5,))
  neck.ignore('add_extra_convs', only=(False,))
  channels = heads.pyramid(neck, 4)[0].channels
  c.ignore('channels', only=(channels,))
  c.ignore('mask_size', only=(2 * c['mask_roi_size'],))
  described = configs.anchors({**c['rpn_anchors'], 'base_anchor_dtype': c['base_anchor_dtype']})
  module = detector.MaskRCNN(
    backbone=backbone,
    num_classes=c['num_classes'],
    pyramid_channels=channels,
    head_channels=c['fc_out_channels'],
    mask_channels=channels,
    box_side=c['bbox_roi_size'],
    mask_side=c['mask_roi_size'],
    anchor_scales=described.scales,
    anchor_ratios=described.ratios,
  )
  strides = module.anchors().strides
  c.ignore('featmap_strides', only=(list(strides[:4]),))
  if described.strides != strides:
    raise arguments.ArgumentError(f'strides are {described.strides}; Mask R-CNN has {strides}')
  anchor_options = {
    'number': sampler['num'],
    'positive_fraction': sampler['pos_fraction'],
    'stds': c['rpn_target_stds'],
    **configs.assigner(c['rpn_assigner']),
  }
  proposal_options = {
    'max_per_level': proposal['nms_pre'],
    'max_boxes': proposal['max_per_img'],
    'iou_threshold': c['rpn_iou_threshold'],
    'min_size': proposal.get('min_bbox_size', 0),
    'stds': c['rpn_target_stds'],
  }
  sampling = {
    'number': c['rcnn_sampler_num'],
    'positive_fraction': c['rcnn_sampler_pos_fraction'],
    'with_truths': c['rcnn_add_gt_as_proposals'],
    **configs.assigner(c['rcnn_assigner']),
  }
  padded, sizes = jnp.asarray(c['pad_shape']), jnp.asarray(c['img_shape'])
  train, stds = manifest['mode'] == 'train', c['rcnn_target_stds']

  def call(network: detector.MaskRCNN, inputs: Arrays) -> Arrays:
    image, truths = channels_last(inputs['image']), _truths(inputs)
    grid = described.of_input(image.shape[1:3])
    outputs, features = network(image, train)
    first = losses.rpn_losses(outputs, truths, padded, grid, None, **anchor_options)
    proposals, _ = rpn.propose(outputs, grid, sizes, **proposal_options)
    levels = [features[f'pyramid_{level}'] for level in range(2, 6)]
    second = _losses(network.region_head, levels, proposals, truths, sampling, stds)
    return second | {
      'loss_rpn_cls': first['objectness_loss'],
      'loss_rpn_bbox': first['proposal_loss'],
    }

  return adapters.module_adapter(
    manifest,
    module,
    rules=rules.detector_rules(module),
    call=call,
    without_gradient=('acc',),
  )
