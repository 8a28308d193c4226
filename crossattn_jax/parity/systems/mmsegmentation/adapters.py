"""Heads of mmsegmentation on the backbones of CrossFormer, BiFormer and SwiftFormer.

All three train them in mmsegmentation, whose names of parameters they therefore share.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.heads import style as style_lib
from crossattn_jax.heads.segmentation import fcn, pyramid_pooling, semantic_fpn, upernet
from crossattn_jax.layers import resize
from crossattn_jax.models import biformer, crossformer, registry, segmentor, swiftformer
from crossattn_jax.parity import adapters, convert
from crossattn_jax.parity import mapping as mapping_lib
from crossattn_jax.parity.layouts import channels_first, channels_last, first_map
from crossattn_jax.parity.mapping import Rule, prefixed
from crossattn_jax.parity.rules import affine, conv_norm
from crossattn_jax.parity.systems.biformer import adapters as biformer_parity
from crossattn_jax.parity.systems.ccnet import rules as ccnet_parity
from crossattn_jax.parity.systems.crossformer import adapters as crossformer_models
from crossattn_jax.parity.systems.crossformer import rules as crossformer_parity
from crossattn_jax.parity.systems.mmsegmentation import losses
from crossattn_jax.parity.systems.swiftformer import adapters as swiftformer_models
from crossattn_jax.parity.systems.swiftformer import rules as swiftformer_parity

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

_LEVELS = 4
_STYLE = style_lib.Style(dropout_rate=0.0)


def _resize(x: jax.Array, size: Sequence[int]) -> jax.Array:
  return resize.resize(x, size, 'bilinear')


# The correspondence of names, from the inside out.


def _unit(torch: str, flax: str) -> list[Rule]:
  """The rules of a convolution with norm and activation."""
  return conv_norm(f'{torch}.conv', f'{torch}.bn', flax)


PYRAMID = [
  *affine('lateral_convs.{i}.conv', 'lateral_{i}', 'conv'),
  *affine('fpn_convs.{i}.conv', 'output_{i}', 'conv'),
]
FPN_HEAD = [
  *(
    rule
    for level in range(_LEVELS)
    for i in range(max(1, level))
    for rule in _unit(f'scale_heads.{level}.{2 * i}', f'level_{level}_conv_{i}')
  ),
  *affine('conv_seg', 'classifier', 'conv'),
]
UPER_HEAD = [
  *(
    rule
    for i, scale in enumerate(pyramid_pooling.SCALES)
    for rule in _unit(f'psp_modules.{i}.1', f'top/pool_{scale}')
  ),
  *_unit('bottleneck', 'top/fusion'),
  *_unit('lateral_convs.{i}', 'lateral_{i}'),
  *_unit('fpn_convs.{i}', 'output_{i}'),
  *_unit('fpn_bottleneck', 'fusion'),
  *affine('conv_seg', 'classifier', 'conv'),
]
FCN_HEAD = [*_unit('convs.0', 'conv'), *affine('conv_seg', 'classifier', 'conv')]
SEMANTIC_FPN = [
  *prefixed(PYRAMID, 'neck.', 'pyramid/'),
  *prefixed(FPN_HEAD, 'decode_head.', 'decoder/'),
]


def _backbone_rules(backbone: nn.Module) -> list[Rule]:
  for module, system in (
    (biformer.BiFormer, biformer_parity),
    (crossformer.CrossFormer, crossformer_parity),
    (swiftformer.SwiftFormer, swiftformer_parity),
  ):
    if isinstance(backbone, module):
      return system.model_rules(backbone)
  raise adapters.AdapterNotFound(
    f'{type(backbone).__name__} has no PyTorch correspondence as a backbone; BiFormer, CrossFormer '
    'and SwiftFormer have'
  )


def _with_classifier(backbone: nn.Module) -> nn.Module:
  if isinstance(backbone, biformer.BiFormer):
    return biformer.BiFormer(dataclasses.replace(backbone.options, backbone=False))
  return backbone.clone(backbone=False)


def segmentor_rules(module: segmentor.Segmentor) -> list[Rule]:
  """The rules of a backbone with its heads."""
  if isinstance(module, segmentor.SemanticFPN):
    heads = prefixed(SEMANTIC_FPN, '', 'decoder/')
  else:
    heads = [
      *prefixed(UPER_HEAD, 'decode_head.', 'decoder/'),
      *prefixed(FCN_HEAD, 'auxiliary_head.', 'auxiliary_head/'),
    ]
  return [*prefixed(_backbone_rules(module.backbone), 'backbone.', 'backbone/'), *heads]


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


@adapters.register_models('mmsegmentation', '+semantic_fpn')
@adapters.register_models('mmsegmentation', '+upernet')
def describe(module: segmentor.Segmentor) -> adapters.ModelParity:
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
  return adapters.ModelParity(
    rules=segmentor_rules(module),
    call=call,
    inputs={'image': jax.ShapeDtypeStruct(shape, jnp.float32)},
    heads=('decoder/decoder/classifier',)
    if is_fpn
    else ('decoder/classifier', 'auxiliary_head/classifier'),
    fields=fields,
  )


def start_from_classifier(
  name: str,
  state: Mapping[str, np.ndarray],
  num_classes: int,
  overrides: Mapping[str, Any] | None = None,
  seed: int = 0,
) -> convert.Conversion:
  """Initialises a network whose backbone was trained as a classifier.

  Args:
    name: of the network, such as 'ccnet_resnet101' or 'biformer_small+upernet'.
    state: of the classifier, as `convert.read_checkpoint` returns it.
    num_classes: of the network.
    overrides: of `create_model`.
    seed: of what the classifier does not have: the heads, and the norms of a backbone's results.

  Returns:
    The conversion; `config.weights` takes its file.

  Raises:
    mapping.MappingError: naming every missing, unexpected and misshapen key.
  """
  overrides = {**(overrides or {}), 'num_classes': num_classes}
  module = registry.create_model(name, **overrides)
  if isinstance(module, segmentor.Segmentor):
    rules = _backbone_rules(module.backbone)
    classifier_rules = _backbone_rules(_with_classifier(module.backbone))
  else:
    rules = ccnet_parity.backbone_rules(len(module.depths))
    classifier_rules = ccnet_parity.RESNET_HEAD
  template = _template(module)
  prefix, flat, lines, problems = 'backbone/', {}, [], []
  used, fresh = set(), []
  for path, leaf in traverse_util.flatten_dict(dict(template), sep='/').items():
    collection, _, inner = path.partition('/')
    own = [rule for rule in rules if rule.collection == collection]
    keys = [rule.key_of(inner.removeprefix(prefix)) for rule in own]
    rule, key = next(((r, k) for r, k in zip(own, keys, strict=True) if k in state), (None, None))
    if not inner.startswith(prefix) or (rule is None and 'output_norm' in inner):
      fresh.append(path)
      lines.append(convert.Line('', (), path, leaf.shape, 'new: freshly initialised'))
    elif rule is None:
      problems.append(f'missing: {next(filter(None, keys), path)} for {path}')
    else:
      used.add(key)
      shape = tuple(rule.layout.torch_shape(leaf.shape))
      if state[key].shape != shape:
        problems.append(f'misshapen: {key} is {state[key].shape}, expected {shape}')
        continue
      flat[path] = rule.layout.to_flax(state[key], leaf.shape)
      lines.append(convert.Line(key, shape, path, leaf.shape, rule.layout.name))
  for key, value in state.items():
    if key in used:
      continue
    if any(rule.path_of(key) or rule.drops(key) for rule in [*rules, *classifier_rules]):
      lines.append(convert.Line(key, value.shape, '', (), "dropped: the classifier's"))
    else:
      problems.append(f'unexpected: {key} {value.shape}')
  if problems:
    raise mapping_lib.MappingError(
      f'the state dict is not of the classifier that {name} starts from '
      f'({len(problems)} problems):\n  ' + '\n  '.join(problems)
    )

  # Compiled, the initialisation of everything else is never computed.
  @jax.jit
  def initial():
    variables = module.init(jax.random.key(seed), jnp.zeros((1, *module.image_size, 3)))
    every = traverse_util.flatten_dict(dict(variables), sep='/')
    return {path: every[path] for path in fresh}

  flat |= {path: np.asarray(value) for path, value in initial().items()}
  variables = traverse_util.unflatten_dict(flat, sep='/')
  return convert.Conversion(name, overrides, variables, tuple(lines))


def _template(module: nn.Module) -> Mapping[str, Any]:
  image = jax.ShapeDtypeStruct((1, *module.image_size, 3), jnp.float32)
  return jax.eval_shape(module.init, jax.random.key(0), image)


# Recorded heads.


def _adapter(
  manifest: Manifest,
  module: nn.Module,
  rules: list[Rule],
  call: Callable[[nn.Module, Arrays, bool], Arrays],
  **keywords: Any,
) -> adapters.Adapter:
  """As `adapters.module_adapter`; `call` gets whether it trains."""
  train = manifest['mode'] == 'train'
  return adapters.module_adapter(
    manifest,
    module,
    rules=rules,
    call=lambda module, inputs: call(module, inputs, train),
    **keywords,
  )


def _statistic_of(norm: str) -> Callable[[str], str]:
  """The names of running statistics where those of one norm have a name without it."""
  return lambda key: f'after/{key}'.replace(f'after/{norm}.', 'new_')


def _maps(inputs: Arrays) -> list[jax.Array]:
  names = sorted(name for name in inputs if re.fullmatch(r'c\d', name))
  return [channels_last(inputs[name]) for name in names]


def _maps_to_logits(module: nn.Module, inputs: Arrays, train: bool) -> Arrays:
  return {'logits': channels_first(module(_maps(inputs), train))}


@adapters.register_adapter('crossformer', 'seg_fpn_neck')
@adapters.register_adapter('swiftformer', 'fpn_5_outputs')
def _pyramid(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('start_level', only=(0,))
  c.ignore('add_extra_convs', only=(False, None))
  extra_levels = c['num_outs'] - len(c['in_channels'])
  module = semantic_fpn.FeaturePyramid(c['out_channels'], _STYLE, extra_levels)
  prefix = 'neck.' if manifest['system'] == 'swiftformer' else ''

  def call(pyramid: nn.Module, inputs: Arrays, train: bool) -> Arrays:
    del train
    return {
      f'p{level}': channels_first(x) for level, x in enumerate(pyramid(_maps(inputs)), start=2)
    }

  return _adapter(manifest, module, prefixed(PYRAMID, prefix), call)


@adapters.register_adapter('crossformer', 'seg_fpn_head')
def _fpn_head(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  module = semantic_fpn.SemanticFPNHead(c['num_classes'], _STYLE, c['channels'])
  return _adapter(
    manifest, module, FPN_HEAD, _maps_to_logits, statistic=_statistic_of('scale_heads.3.0.bn')
  )


@adapters.register_adapter('crossformer', 'seg_uper_head')
def _uper_head(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  module = upernet.UPerHead(c['num_classes'], _STYLE, c['channels'], tuple(c['pool_scales']))
  return _adapter(
    manifest, module, UPER_HEAD, _maps_to_logits, statistic=_statistic_of('bottleneck.bn')
  )


@adapters.register_adapter('crossformer', 'seg_fcn_aux_head')
def _fcn_head(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  return _adapter(
    manifest,
    fcn.FCNHead(c['num_classes'], _STYLE, c['channels']),
    FCN_HEAD,
    lambda module, inputs, train: {
      'logits': channels_first(module(channels_last(inputs['c4']), train))
    },
  )


@adapters.register_adapter('swiftformer', 'semantic_fpn')
def _semantic_fpn(manifest: Manifest) -> adapters.Adapter:
  """The neck and the head, and what each of their parts returns."""
  c = manifest['constructor']
  c.ignore_rates('dropout')
  levels = len(c['in_channels'])
  module = semantic_fpn.SemanticFPN(c['num_classes'], _STYLE, c['fpn_channels'], c['head_channels'])

  def upsampled(x: jax.Array) -> jax.Array:
    return channels_first(_resize(x, (2 * x.shape[1], 2 * x.shape[2])))

  taps = {'decode_head': ('decoder', channels_first), 'neck': ('pyramid', first_map)}
  for level in range(levels):
    taps[f'p{2 + level}'] = ('pyramid', lambda maps, level=level: channels_first(maps[level]))
    taps[f'neck.fpn_convs.{level}'] = (f'pyramid/output_{level}', channels_first)
    convs = max(1, level)
    for i in range(convs):
      conv = (f'decoder/level_{level}_conv_{i}', channels_first)
      taps[f'decode_head.scale_heads.{level}.{2 * i}'] = conv
    last = f'decoder/level_{level}_conv_{convs - 1}'
    taps[f'decode_head.scale_heads.{level}'] = (last, upsampled if level else channels_first)
  return _adapter(manifest, module, SEMANTIC_FPN, _maps_to_logits, taps=taps)


class _UPerNetHeads(nn.Module):
  """Main and auxiliary head without a backbone."""

  classes: int
  channels: int
  auxiliary_channels: int

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool) -> tuple[jax.Array, jax.Array]:
    main = upernet.UPerHead(self.classes, _STYLE, self.channels, name='decoder')
    auxiliary = fcn.FCNHead(self.classes, _STYLE, self.auxiliary_channels, name='auxiliary_head')
    return main(maps, train), auxiliary(maps[2], train)


@adapters.register_adapter('biformer', 'upernet_head')
def _upernet_heads(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']

  def call(module: nn.Module, inputs: Arrays, train: bool) -> Arrays:
    main, auxiliary = module(_maps(inputs), train)
    return {
      'logits': channels_first(main),
      'aux_logits': channels_first(auxiliary),
    }

  return _adapter(
    manifest,
    _UPerNetHeads(c['num_classes'], c['channels'], c['aux_channels']),
    [
      *prefixed(UPER_HEAD, 'decode_head.', 'decoder/'),
      *prefixed(FCN_HEAD, 'auxiliary_head.', 'auxiliary_head/'),
    ],
    call,
  )


# Whole networks.


def _labels(inputs: Arrays) -> jax.Array:
  labels = inputs['labels'] if 'labels' in inputs else inputs['label']
  return labels[:, 0] if labels.ndim == 4 else labels


def _segmentor_adapter(
  manifest: Manifest,
  backbone: nn.Module,
  looks: Callable[[Mapping[str, jax.Array]], Arrays] = lambda features: {},
) -> adapters.Adapter:
  """The adapter of a backbone with its heads, with whatever of its results was recorded.

  `looks` gives outputs by the backbone's features, which were not differentiated.
  """
  shapes = {entry['key']: entry['shape'] for entry in manifest['state']}
  network, fields = segmentor_of(shapes)
  module = network(backbone=backbone, dropout_rate=0.0, **fields)
  recorded = manifest['shapes']

  def logits_as_recorded(name: str, logits: jax.Array) -> jax.Array:
    """At the image's size where they were recorded so."""
    size = recorded.get(f'out/{name}', (0, 0, *logits.shape[1:3]))[2:]
    return channels_first(_resize(logits, size))

  def call(network: nn.Module, inputs: Arrays, train: bool) -> Arrays:
    logits, features = network(channels_last(inputs['image']), train)
    outputs = {'logits': logits_as_recorded('logits', logits), **looks(features)}
    auxiliary = features.get('auxiliary_logits')
    if auxiliary is not None:
      outputs['aux_logits'] = logits_as_recorded('aux_logits', auxiliary)
    if {'label', 'labels'} & set(inputs):
      labels = _labels(inputs)
      loss = outputs['decode/loss_ce'] = losses.cross_entropy(logits, labels)
      outputs['decode/acc_seg'] = losses.accuracy(logits, labels)
      if auxiliary is not None:
        outputs['aux/loss_ce'] = losses.AUXILIARY_WEIGHT * losses.cross_entropy(auxiliary, labels)
        outputs['aux/acc_seg'] = losses.accuracy(auxiliary, labels)
        loss += outputs['aux/loss_ce']
      outputs['loss'] = loss
    return outputs

  return _adapter(
    manifest,
    module,
    segmentor_rules(module),
    call,
    without_gradient=('decode/acc_seg', 'aux/acc_seg'),
  )


@adapters.register_adapter('crossformer', 'SemanticFPN')
@adapters.register_adapter('crossformer', 'SemanticFPN+loss')
@adapters.register_adapter('crossformer', 'UPerNet')
@adapters.register_adapter('crossformer', 'UPerNet+loss')
def _crossformer_segmentor(manifest: Manifest) -> adapters.Adapter:
  backbone = crossformer_models.build_model(
    manifest['constructor']['backbone'],
    backbone=True,
    lda=crossformer_models.long_distance(manifest),
  )
  return _segmentor_adapter(manifest, backbone)


@adapters.register_adapter('swiftformer', 'SwiftFormer+SemanticFPN')
@adapters.register_adapter('swiftformer', 'SwiftFormer+SemanticFPN+loss')
def _swiftformer_segmentor(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  # The state says them.
  c.ignore('num_classes', 'fpn_channels', 'head_channels')
  c.ignore_rates('dropout')
  backbone = swiftformer_models.model_of(c.get('backbone', c), backbone=True)
  return _segmentor_adapter(manifest, backbone)


@adapters.register_adapter('biformer', 'semantic_fpn')
@adapters.register_adapter('biformer', 'semantic_fpn+loss')
@adapters.register_adapter('biformer', 'upernet')
@adapters.register_adapter('biformer', 'upernet+loss')
def _biformer_segmentor(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  backbone = registry.create_model(
    'biformer_small',
    backbone=True,
    padding='input',
    regions_per_side=(c['n_win'],) * _LEVELS,
    depths=tuple(c['depth']),
    widths=tuple(c['dims']),
    qk_dims=tuple(c['dims']),
  )

  def looks(features: Mapping[str, jax.Array]) -> Arrays:
    return {
      f'route/backbone.stages.{key}': regions
      for key, regions in biformer_parity.recorded_routing(features, backbone).items()
    }

  return _segmentor_adapter(manifest, backbone, looks)
