"""CCNet, PSPNet, DeepLabv3 and their ResNet beside their PyTorch original: speedinghzl/CCNet."""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.conversion import correspondence, layouts
from crossattn_jax.conversion import rules as rules_lib
from crossattn_jax.conversion.layouts import channels_first, channels_last, first_map
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, conv_norm
from crossattn_jax.heads.segmentation import aspp, pyramid_pooling
from crossattn_jax.models import ccnet
from crossattn_jax.models.backbones import resnet

Arrays = dict[str, jax.Array]


def criss_cross_rules(rank: int) -> list[Rule]:
  """The rules of `CrissCrossAttention` on maps of `rank` axes, inside the original's module."""
  return [
    Rule('gamma', 'gate', 'unbatched'),
    *affine('{map:query|key|value}_conv', '{map}', layouts.pointwise('linear', rank)),
  ]


STEM = [rule for i in range(3) for rule in conv_norm(f'conv{i + 1}', f'bn{i + 1}', f'conv_{i}')]

RESNET_HEAD = affine('fc', 'head')


@correspondence.register_backbone(resnet.ResNet)
def resnet_rules(module: resnet.ResNet) -> list[Rule]:
  """The rules of the official classifier, or of mmdetection's backbone ResNet or ResNetV1c.

  Of the latter the stem is one sequence, in which every third layer is an activation.
  """
  deep_stem = len(module.stem_widths) > 1
  rules = rules_lib.resnet(len(module.depths), deep_stem)
  if module.num_classes:
    return [*rules, *RESNET_HEAD]
  if not deep_stem:
    return rules
  rules = rules[len(STEM) :]
  for i in range(3):
    rules += conv_norm(f'stem.{3 * i}', f'stem.{3 * i + 1}', f'stem/conv_{i}')
  return rules


RCCA = [
  *conv_norm('conva.0', 'conva.1', 'reduction'),
  *prefixed(criss_cross_rules(2), 'cca.', 'attention/'),
  *conv_norm('convb.0', 'convb.1', 'output'),
  *conv_norm('bottleneck.0', 'bottleneck.1', 'fusion'),
  *affine('bottleneck.3', 'classifier', 'conv'),
]


def psp_rules(scales: Sequence[int] = pyramid_pooling.SCALES) -> list[Rule]:
  """The rules of pyramid pooling to so many bins per side."""
  rules = conv_norm('bottleneck.0', 'bottleneck.1', 'fusion')
  for i, scale in enumerate(scales):
    rules += conv_norm(f'stages.{i}.1', f'stages.{i}.2', f'pool_{scale}')
  return rules


def aspp_rules(
  dilations: Sequence[int] = aspp.AtrousSpatialPyramidPooling.dilations,
) -> list[Rule]:
  """The rules of atrous spatial pyramid pooling."""
  rules = [
    *conv_norm('conv1.1', 'conv1.2', 'image'),
    *conv_norm('conv2.0', 'conv2.1', 'pixel'),
    *conv_norm('bottleneck.0', 'bottleneck.1', 'fusion'),
  ]
  for i, dilation in enumerate(dilations, start=3):
    rules += conv_norm(f'conv{i}.0', f'conv{i}.1', f'dilation_{dilation}')
  return rules


def model_rules(module: ccnet.CCNet) -> list[Rule]:
  """The rules of a whole network."""
  if module.context == 'rcca':
    head = RCCA
  else:
    pooling = psp_rules() if module.context == 'psp' else aspp_rules()
    head = [*prefixed(pooling, '0.', 'pooling/'), *affine('1', 'classifier', 'conv')]
  return [
    *prefixed(rules_lib.resnet(len(module.depths), deep_stem=True), flax='backbone/'),
    *prefixed(head, 'head.', 'head/'),
    *conv_norm('dsn.0', 'dsn.1', 'auxiliary_head/conv'),
    *affine('dsn.3', 'auxiliary_head/classifier', 'conv'),
    # The paper's, in no official checkpoint.
    *affine('head.embedding', 'head/embedding', 'conv'),
  ]


def statistic(key: str) -> str:
  """The output's name of a running statistic, in which the norm comes last."""
  norm, _, name = key.rpartition('.')
  return f'new_{name}/{norm}'


RCCA_TAPS = {
  'conva': ('reduction', first_map),
  'cca': ('attention', first_map),
  'convb': ('output', first_map),
  'bottleneck.1': ('fusion', first_map),
}


def model_taps(module: ccnet.CCNet) -> dict[str, correspondence.TapLike | None]:
  """The taps of a whole network."""
  taps: dict[str, correspondence.TapLike | None] = {'maxpool': ('backbone/stem', first_map)}
  for s, depth in enumerate(module.depths):
    taps[f'layer{s + 1}'] = (f'backbone/stage_{s}', first_map)
    for b in range(depth):
      taps[f'layer{s + 1}.{b}'] = (f'backbone/stage_{s}/block_{b}', first_map)
  if module.auxiliary:
    taps['dsn.1'] = ('auxiliary_head/conv', first_map)
  if module.context == 'rcca':
    for name, (path, to_original) in RCCA_TAPS.items():
      if name != 'cca' or module.recurrence:
        taps[f'head.{name}'] = (f'head/{path}', to_original)
  else:
    taps['head.0'] = ('head/pooling', first_map)
  return taps


@correspondence.register_models('ccnet', 'ccnet*_resnet*')
@correspondence.register_models('ccnet', 'pspnet_resnet*')
@correspondence.register_models('ccnet', 'deeplabv3_resnet*')
def describe(module: ccnet.CCNet) -> correspondence.Correspondence:
  """Says how a registered network corresponds to the official one.

  Official images are blue, green, red in 0..255 minus their means.
  """

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    logits, features = model(channels_last(inputs['image']))
    outputs = {'logits': channels_first(logits)}
    if model.auxiliary:
      outputs['dsn_logits'] = channels_first(features['auxiliary_logits'])
    return outputs

  def fields(shapes: correspondence.Shapes) -> dict[str, Any]:
    embedding = shapes.get('head.embedding.weight', (0,))[0]
    return {'auxiliary': 'dsn.0.weight' in shapes, 'embedding': embedding}

  return correspondence.Correspondence(
    rules=model_rules(module),
    call=call,
    inputs={'image': jax.ShapeDtypeStruct((1, module.num_channels, 97, 97), jnp.float32)},
    taps=model_taps(module),
    heads=('head/classifier', 'auxiliary_head/classifier'),
    classifier_rules=[*rules_lib.resnet(len(module.depths), deep_stem=True), *RESNET_HEAD],
    fields=fields,
  )


@correspondence.register_models('ccnet', 'resnet[0-9]*')
def describe_resnet(module: resnet.ResNet) -> correspondence.Correspondence:
  """Says how a ResNet corresponds to torchvision's, or to what the official networks start from."""
  taps = {f'layer{s + 1}': (f'stage_{s}', first_map) for s in range(len(module.depths))}
  return correspondence.Correspondence(
    rules=[*rules_lib.resnet(len(module.depths), len(module.stem_widths) > 1), *RESNET_HEAD],
    call=correspondence.logits_or_maps,
    inputs={'image': correspondence.image_input(module)},
    taps={'maxpool': ('stem', first_map), **taps},
    heads=('head',) if module.num_classes else (),
  )
