"""Cases of mmsegmentation's heads, alone and on the backbones of several systems.

CrossFormer, BiFormer and SwiftFormer train them in mmsegmentation and share its names.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax

from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion.layouts import channels_first, channels_last, first_map
from crossattn_jax.conversion.mapping import Rule
from crossattn_jax.conversion.systems import mmsegmentation as rules
from crossattn_jax.heads import style as style_lib
from crossattn_jax.heads.segmentation import fcn, pyramid_pooling, semantic_fpn, upernet
from crossattn_jax.layers import resize
from crossattn_jax.models import segmentor
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.mmsegmentation import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

_STYLE = style_lib.Style(dropout_rate=0.0)


def _resize(x: jax.Array, size: Sequence[int]) -> jax.Array:
  return resize.resize(x, size, 'bilinear')


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


# Heads without a backbone.


def _ignore_what_changes_nothing(c: arguments.Arguments) -> None:
  c.ignore('type', 'dropout_ratio', 'dropout', 'in_index', 'norm_cfg', 'init_cfg', 'loss_decode')
  c.ignore('align_corners', only=(False, 'False'))


def _levels(manifest: Manifest) -> list[str]:
  """The names of the maps c2, c3, ... of a head's inputs, finest first."""
  c, names = manifest['constructor'], sorted(manifest['inputs'])
  _ignore_what_changes_nothing(c)
  c.ignore('in_channels', only=([manifest['inputs'][name]['shape'][1] for name in names],))
  strides = [4 * 2**level for level in range(len(names))]
  c.ignore('feature_strides', only=(strides,))
  return names


def _maps(inputs: Arrays) -> list[jax.Array]:
  return [channels_last(inputs[name]) for name in sorted(inputs)]


def _maps_to_logits(module: nn.Module, inputs: Arrays, train: bool) -> Arrays:
  return {'logits': channels_first(module(_maps(inputs), train))}


@adapters.register_adapter('crossformer', 'seg_fpn_head')
def _fpn_head(manifest: Manifest) -> adapters.Adapter:
  c, levels = manifest['constructor'], len(_levels(manifest))
  module = semantic_fpn.SemanticFPNHead(c.get('num_classes', 150), _STYLE, c.get('channels', 128))
  last = f'scale_heads.{levels - 1}.0.bn'
  return _adapter(
    manifest,
    module,
    rules.fpn_head_rules(levels),
    _maps_to_logits,
    taps=_scale_heads(levels),
    statistic=_statistic_of(last),
  )


def _scale_heads(levels: int, torch: str = '', flax: str = '') -> dict[str, correspondence.TapLike]:
  """The taps of a head's levels; there, the last step of all but the finest is an upsampling."""

  def upsampled(x: jax.Array) -> jax.Array:
    return channels_first(_resize(x, (2 * x.shape[1], 2 * x.shape[2])))

  taps = {}
  for level in range(levels):
    paths = [f'{flax}level_{level}_conv_{i}' for i in range(max(1, level))]
    for i, path in enumerate(paths):
      taps[f'{torch}scale_heads.{level}.{2 * i}'] = (path, channels_first)
    taps[f'{torch}scale_heads.{level}'] = (paths[-1], upsampled if level else channels_first)
  return taps


@adapters.register_adapter('crossformer', 'seg_uper_head')
def _uper_head(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  _levels(manifest)
  scales = tuple(c.get('pool_scales', pyramid_pooling.SCALES))
  module = upernet.UPerHead(c.get('num_classes', 150), _STYLE, c.get('channels', 512), scales)
  return _adapter(
    manifest,
    module,
    rules.uper_head_rules(scales),
    _maps_to_logits,
    statistic=_statistic_of('bottleneck.bn'),
  )


@adapters.register_adapter('crossformer', 'seg_fcn_aux_head')
def _fcn_head(manifest: Manifest) -> adapters.Adapter:
  c, ((name, entry),) = manifest['constructor'], manifest['inputs'].items()
  _ignore_what_changes_nothing(c)
  c.ignore('in_channels', only=(entry['shape'][1],))
  c.ignore('num_convs', only=(1,))
  c.ignore('concat_input', only=(False,))
  module = fcn.FCNHead(c.get('num_classes', 150), _STYLE, c.get('channels', 256))

  def call(module: nn.Module, inputs: Arrays, train: bool) -> Arrays:
    return {'logits': channels_first(module(channels_last(inputs[name]), train))}

  return _adapter(manifest, module, rules.FCN_HEAD, call)


@adapters.register_adapter('swiftformer', 'semantic_fpn')
def _semantic_fpn(manifest: Manifest) -> adapters.Adapter:
  c, levels = manifest['constructor'], len(_levels(manifest))
  module = semantic_fpn.SemanticFPN(
    c.get('num_classes', 150), _STYLE, c.get('fpn_channels', 256), c.get('head_channels', 128)
  )
  taps = _semantic_fpn_taps(levels)
  return _adapter(manifest, module, rules.semantic_fpn_rules(levels), _maps_to_logits, taps=taps)


def _semantic_fpn_taps(levels: int, flax: str = '') -> dict[str, correspondence.TapLike]:
  """The taps of a feature pyramid and its head, which stand at `flax`."""
  taps = {'decode_head': (f'{flax}decoder', channels_first), 'neck': (f'{flax}pyramid', first_map)}
  taps |= _scale_heads(levels, 'decode_head.', f'{flax}decoder/')
  for level in range(levels):
    whole = lambda maps, level=level: channels_first(maps[level])
    taps[f'p{2 + level}'] = (f'{flax}pyramid', whole)
    taps[f'neck.fpn_convs.{level}'] = (f'{flax}pyramid/output_{level}', channels_first)
  return taps


class _UPerNetHeads(nn.Module):
  """Main and auxiliary head without a backbone."""

  classes: int
  channels: int
  auxiliary_channels: int
  scales: tuple[int, ...]

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool) -> tuple[jax.Array, jax.Array]:
    main = upernet.UPerHead(self.classes, _STYLE, self.channels, self.scales, name='decoder')
    auxiliary = fcn.FCNHead(self.classes, _STYLE, self.auxiliary_channels, name='auxiliary_head')
    return main(maps, train), auxiliary(maps[-2], train)


@adapters.register_adapter('biformer', 'upernet_head')
def _upernet_heads(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  _levels(manifest)
  scales = tuple(c.get('pool_scales', pyramid_pooling.SCALES))
  module = _UPerNetHeads(
    c.get('num_classes', 150), c.get('channels', 512), c.get('aux_channels', 256), scales
  )

  def call(module: nn.Module, inputs: Arrays, train: bool) -> Arrays:
    main, auxiliary = module(_maps(inputs), train)
    return {'logits': channels_first(main), 'aux_logits': channels_first(auxiliary)}

  return _adapter(manifest, module, rules.upernet_rules(scales), call)


# Whole networks.


def _head_loss(c: arguments.Arguments, name: str, weight: float) -> losses.Loss:
  """The loss of a head; its widths and classes are those of the state."""
  head = c.get(name, {})
  if not isinstance(head, arguments.Arguments):  # In words, or none at all.
    head = arguments.Arguments({}, name)
  _ignore_what_changes_nothing(head)
  head.ignore('in_channels', 'channels', 'num_classes')
  head.ignore('feature_strides', only=([4, 8, 16, 32], '[4, 8, 16, 32]'))
  head.ignore('pool_scales', only=([1, 2, 3, 6], '(1, 2, 3, 6)'))
  head.ignore('num_convs', only=(1, '1'))
  head.ignore('concat_input', only=(False, 'False'))
  return losses.loss_of_head(head, weight)


def segmentor_adapter(
  manifest: Manifest,
  backbone: nn.Module,
  looks: Callable[[Mapping[str, jax.Array]], Arrays] = lambda features: {},
) -> adapters.Adapter:
  """The adapter of a backbone with its heads, and with their losses where there are labels.

  Args:
    manifest: its constructor may describe `neck`, `head` and `auxiliary_head`.
    backbone: built from the rest of it.
    looks: gives outputs by the backbone's features, which were not differentiated.
  """
  c = manifest['constructor']
  neck = c.get('neck', {})
  if isinstance(neck, arguments.Arguments):
    neck.ignore('type', 'in_channels', 'out_channels')
    neck.ignore('num_outs', only=(4,))
  loss, auxiliary_loss = _head_loss(c, 'head', 1.0), _head_loss(c, 'auxiliary_head', 0.4)
  shapes = {entry['key']: entry['shape'] for entry in manifest['state']}
  network, fields = rules.segmentor_of(shapes)
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
    labels = inputs.get('labels', inputs.get('label'))
    if labels is None:
      return outputs
    labels = losses.as_map(labels)
    total = outputs['decode/loss_ce'] = loss(logits, labels)
    outputs['decode/acc_seg'] = losses.accuracy(logits, labels)
    if auxiliary is not None:
      outputs['aux/loss_ce'] = auxiliary_loss(auxiliary, labels)
      outputs['aux/acc_seg'] = losses.accuracy(auxiliary, labels)
      total += outputs['aux/loss_ce']
    return outputs | {'loss': total}

  return _adapter(
    manifest,
    module,
    rules.segmentor_rules(module),
    call,
    # No taps are known of UPerNet's modules yet.
    taps=_semantic_fpn_taps(4, 'decoder/') if network is segmentor.SemanticFPN else {},
    without_gradient=('decode/acc_seg', 'aux/acc_seg'),
  )
