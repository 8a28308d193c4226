"""Cases of mmdetection's dense heads, alone, on a feature pyramid, and with their losses."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.systems import mmdetection as rules
from crossattn_jax.conversion.systems import mmsegmentation
from crossattn_jax.heads import feature_pyramid
from crossattn_jax.heads.detection import anchors as anchors_lib
from crossattn_jax.heads.detection import decoding, retinanet, rpn
from crossattn_jax.models import detector
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.mmdetection import configs
from crossattn_jax.tasks.detection import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


def _numbers(inputs: Mapping[str, Any], prefix: str) -> list[int]:
  """The levels of the maps 'p3', 'p4', ... among the inputs."""
  names = [name.removeprefix(prefix) for name in inputs if name.startswith(prefix)]
  return sorted(int(name) for name in names if name.isdecimal())


def _maps(inputs: Arrays, prefix: str) -> list[jax.Array]:
  return [channels_last(inputs[f'{prefix}{i}']) for i in _numbers(inputs, prefix)]


def _grid(described: anchors_lib.Anchors, maps: Sequence[jax.Array]) -> anchors_lib.AnchorGrid:
  return anchors_lib.AnchorGrid(described, tuple(x.shape[1:3] for x in maps))


def _by_level(terms: Mapping[str, jax.Array], level: jax.Array, levels: Sequence[int]) -> Arrays:
  """Sums of losses over the anchors of each level, as the original calls them."""
  return {
    f'{name}/{number}': jnp.sum(jnp.where(level == i, term, 0))[None]
    for name, term in terms.items()
    for i, number in enumerate(levels)
  }


# Feature pyramids, alone and with the heads' maps.


def pyramid(c: arguments.Arguments, count: int) -> tuple[feature_pyramid.FeaturePyramid, slice]:
  """The pyramid of a configured neck on a backbone's maps, so many, and which of them it takes.

  Raises:
    arguments.ArgumentError: the pyramid is none that can be built.
  """
  c.ignore('type', 'in_channels', 'conv_cfg', 'init_cfg')
  c.ignore('act_cfg', only=(None,))
  c.ignore('no_norm_on_lateral', only=(False,))
  c.ignore('upsample_cfg', only=({'mode': 'nearest'},))
  first, last = c.get('start_level', 0), c.get('end_level', -1)
  used = slice(first, last + 1 if last >= 0 else count)
  levels = len(range(count)[used])
  extra = c.get('add_extra_convs', False)
  norm = c.get('norm_cfg')
  if norm is not None:
    norm.ignore('requires_grad')
    norm.ignore('type', only=('BN', 'SyncBN'))
  module = feature_pyramid.FeaturePyramid(
    c.get('out_channels', 256),
    extra_levels=c.get('num_outs', levels) - levels,
    extra='input' if extra is True else (extra or 'pool').removeprefix('on_'),
    extra_relu=c.get('relu_before_extra_convs', False),
    norm=norm is not None,
  )
  return module, used


@adapters.register_adapter('crossformer', 'seg_fpn_neck')
@adapters.register_adapter('crossformer', 'det_fpn_maskrcnn')
@adapters.register_adapter('crossformer', 'det_fpn_retinanet')
@adapters.register_adapter('swiftformer', 'fpn_5_outputs')
def _pyramid(manifest: Manifest) -> adapters.Adapter:
  numbers, train = _numbers(manifest['inputs'], 'c'), manifest['mode'] == 'train'
  module, used = pyramid(manifest['constructor'], len(numbers))

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    levels = module(_maps(inputs, 'c')[used], train)
    first = numbers[used][0]
    return {f'p{level}': channels_first(x) for level, x in enumerate(levels, start=first)}

  prefix = 'neck.' if manifest['system'] == 'swiftformer' else ''
  return adapters.module_adapter(
    manifest, module, rules=prefixed(mmsegmentation.PYRAMID, prefix), call=call
  )


class _PyramidWithHead(nn.Module):
  """A feature pyramid, and a head that looks at its levels."""

  pyramid: feature_pyramid.FeaturePyramid
  head: nn.Module

  def __call__(self, maps: Sequence[jax.Array], train: bool) -> tuple[Any, Any]:
    levels = self.pyramid(maps, train)
    return levels, self.head(levels)


def _with_head(
  manifest: Manifest, head: nn.Module, head_rules: list[Rule], names: Mapping[str, str]
) -> adapters.Adapter:
  """A pyramid with the maps of a head, whose outputs the original calls as `names` says."""
  numbers, train = _numbers(manifest['inputs'], 'c'), manifest['mode'] == 'train'
  neck, used = pyramid(manifest['constructor'], len(numbers))

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    levels, found = module(_maps(inputs, 'c')[used], train)
    outputs, sizes = {}, [x.shape[1:3] for x in levels]
    maps = {name: configs.maps_of_rows(found[key], sizes) for key, name in names.items()}
    for i, x in enumerate(levels):
      level = numbers[used][0] + i
      outputs[f'p{level}'] = channels_first(x)
      outputs |= {f'{name}_p{level}': of_levels[i] for name, of_levels in maps.items()}
    return outputs

  return adapters.module_adapter(
    manifest,
    _PyramidWithHead(neck, head),
    rules=[*prefixed(mmsegmentation.PYRAMID, 'neck.', 'pyramid/'), *head_rules],
    call=call,
  )


@adapters.register_adapter('biformer', 'retinanet_fpn_head')
def _retinanet_on_pyramid(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  head = retinanet.RetinaNetHead(
    c.get('num_classes', 80),
    c.get('anchors_per_cell', 9),
    c.get('feat_channels', 256),
    c.get('stacked_convs', 4),
  )
  head_rules = prefixed(rules.RETINANET_HEAD, 'bbox_head.', 'head/')
  return _with_head(manifest, head, head_rules, {'logits': 'cls', 'deltas': 'reg'})


@adapters.register_adapter('biformer', 'maskrcnn_fpn_rpn')
def _proposals_on_pyramid(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  head = rpn.RegionProposalHead(c.get('anchors_per_cell', 3), c.get('feat_channels', 256))
  head_rules = prefixed(rules.PROPOSAL_HEAD, 'rpn_head.', 'head/')
  names = {'objectness': 'rpn_cls', 'anchor_deltas': 'rpn_reg'}
  return _with_head(manifest, head, head_rules, names)


# Heads with their losses.


def _sizes(c: arguments.Arguments) -> tuple[jax.Array, jax.Array]:
  """Of the images, and of those with their padding."""
  c.ignore('image')  # The batch's: the maps have sizes.
  return jnp.asarray(c['img_shape']), jnp.asarray(c['pad_shape'])


@adapters.register_adapter('crossformer', 'det_retina_head_losses')
def _retinanet_losses(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('in_channels')  # The maps have them.
  described, numbers = configs.anchors(c), _numbers(manifest['inputs'], 'p')
  module = retinanet.RetinaNetHead(
    c['num_classes'], described.per_cell, c['feat_channels'], c['stacked_convs']
  )
  _, padded = _sizes(c)
  options = retinanet_options(c)

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    maps = _maps(inputs, 'p')
    grid, found = _grid(described, maps), module(maps)
    terms = losses.retinanet_terms(found, configs.truths(inputs), padded, grid, **options)
    level = np.repeat(np.arange(len(maps)), grid.counts)
    outputs = _by_level(
      {'loss_cls': terms['class_loss'], 'loss_bbox': terms['box_loss']}, level, numbers
    )
    for name, rows in (('cls', found['logits']), ('reg', found['deltas'])):
      for number, x in zip(numbers, configs.maps_of_rows(rows, grid.map_sizes), strict=True):
        outputs[f'{name}_p{number}'] = x
    return outputs

  return adapters.module_adapter(manifest, module, rules=rules.RETINANET_HEAD, call=call)


def retinanet_options(c: arguments.Arguments) -> dict[str, Any]:
  """How a configured RetinaNet learns."""
  return {
    'alpha': c['alpha'],
    'gamma': c['gamma'],
    'stds': c['target_stds'],
    **configs.assigner(c),
  }


@adapters.register_adapter('crossformer', 'det_rpn')
def _proposals(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('in_channels')  # The maps have them.
  described, numbers = configs.anchors(c), _numbers(manifest['inputs'], 'p')
  module = rpn.RegionProposalHead(described.per_cell, c['feat_channels'])
  sizes, padded = _sizes(c)
  stds = tuple(c['target_stds'])
  sampling = {'number': c['sampler_num'], 'positive_fraction': c['sampler_pos_fraction']}
  selection = {
    'max_per_level': c['nms_pre'],
    'max_boxes': c['max_per_img'],
    'iou_threshold': c['iou_threshold'],
    'min_size': c.get('min_bbox_size', 0),
  }
  matching = configs.assigner(c)

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    maps = _maps(inputs, 'p')
    grid, found = _grid(described, maps), module(maps)
    truths = configs.truths(inputs)
    # The recorded sample is that of the lowest indices.
    terms, indices = losses.rpn_terms(
      found, truths, padded, grid, None, stds=stds, **sampling, **matching
    )
    level = jnp.repeat(jnp.arange(len(maps)), np.array(grid.counts))[indices]
    outputs = _by_level(
      {'loss_cls': terms['objectness_loss'], 'loss_bbox': terms['proposal_loss']}, level, numbers
    )
    boxes, scores = rpn.propose(found, grid, sizes, stds=stds, **selection)
    proposals = jnp.concatenate([boxes, scores[..., None]], axis=-1)
    for i, rows in enumerate(proposals):
      # The original returns as many as there are.
      outputs[f'proposals_{i}'] = rows[: manifest['shapes'][f'out/proposals_{i}'][0]]
    return outputs

  return adapters.module_adapter(
    manifest,
    module,
    rules=rules.PROPOSAL_HEAD,
    call=call,
    without_gradient=[f'proposals_{i}' for i in range(len(sizes))],
  )


@adapters.register_adapter('crossformer', 'det_retina_predict')
def _detections(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  described, size, classes = configs.anchors(c), jnp.asarray([c['image']]), c['num_classes']
  factor = np.asarray(c['scale_factor'])
  options = {
    'score_threshold': c['score_thr'],
    'iou_threshold': c['iou_threshold'],
    'max_boxes': c['max_per_img'],
    'max_per_level': c['nms_pre'],
    'stds': tuple(c['target_stds']),
  }
  count = manifest['shapes']['out/scores'][0]  # The original returns as many as there are.

  def run(**inputs: jax.Array) -> Arrays:
    logits, deltas = _maps(inputs, 'cls'), _maps(inputs, 'reg')
    outputs = {
      'logits': retinanet.rows_of_anchors(logits, classes),
      'deltas': retinanet.rows_of_anchors(deltas, 4),
    }
    found = decoding.decode_retinanet(outputs, _grid(described, logits), size, **options)
    boxes, scores, labels = (x[0, :count] for x in (found.boxes, found.scores, found.labels))
    return {'boxes': boxes / factor, 'scores': scores, 'labels': labels}

  return adapters.function_adapter(run, without_gradient=configs.names(manifest), jit=True)


# Whole detectors.


def retinanet_adapter(manifest: Manifest, backbone: nn.Module) -> adapters.Adapter:
  """The adapter of the losses of RetinaNet on a backbone, built of the rest of the constructor.

  Raises:
    arguments.ArgumentError: the detector is none that can be built.
  """
  c = manifest['constructor']
  described, neck = configs.anchors(c), c['neck']
  neck.ignore('start_level', only=(1,))
  neck.ignore('end_level', only=(-1, 3))
  neck.ignore('num_outs', only=(5,))
  neck.ignore('add_extra_convs', only=('on_input', True))
  neck.ignore('relu_before_extra_convs', only=(False,))
  module = detector.RetinaNet(
    backbone=backbone,
    num_classes=c['num_classes'],
    pyramid_channels=pyramid(neck, 4)[0].channels,
    head_channels=c['channels'],
    head_convs=c.get('stacked_convs', 4),
    anchor_scale=c.get('octave_base_scale', 4),
    scales_per_octave=c.get('scales_per_octave', 3),
    anchor_ratios=described.ratios,
  )
  if described.strides != module.anchors().strides:
    raise arguments.ArgumentError(
      f'strides are {described.strides}; RetinaNet has {module.anchors().strides}'
    )
  _, padded = _sizes(c)
  options, train = retinanet_options(c), manifest['mode'] == 'train'

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    image = channels_last(inputs['image'])
    found, _ = module(image, train)
    grid = described.of_input(image.shape[1:3])
    of_all = losses.retinanet_losses(found, configs.truths(inputs), padded, grid, **options)
    return {'loss_cls': of_all['class_loss'][None], 'loss_bbox': of_all['box_loss'][None]}

  return adapters.module_adapter(manifest, module, rules=rules.detector_rules(module), call=call)
