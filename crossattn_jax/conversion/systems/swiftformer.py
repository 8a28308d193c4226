"""SwiftFormer and its PyTorch originals: Amshaker/SwiftFormer, timm, transformers; its teacher."""

from typing import Any

from crossattn_jax.conversion import correspondence, layouts
from crossattn_jax.conversion.layouts import as_tokens, channels_first
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, batch_norm
from crossattn_jax.models import swiftformer
from crossattn_jax.models.backbones import regnet

# The correspondence of names, from the inside out.


# A factor per channel: (channels, 1, 1) -> [channels], and w_g: (channels, 1) -> [channels].
CHANNELS, COLUMN = (
  layouts.Layout(
    name,
    lambda shape, ones=ones: (*shape, *ones),
    lambda x, shape: x.reshape(shape),
    lambda x, shape: x.reshape(shape),
  )
  for name, ones in (('per channel', (1, 1)), ('column', (1,)))
)


def attention_rules(spelling: str = '') -> list[Rule]:
  """The rules of efficient additive attention."""
  return [
    *affine('to_query', 'query', 'linear', spelling=spelling),
    *affine('to_key', 'key', 'linear', spelling=spelling),
    Rule('w_g', 'query_weights', COLUMN, spelling=spelling),
    *affine('proj' if spelling else 'Proj', 'projection', 'linear', spelling=spelling),
    *affine('final', 'out', 'linear', spelling=spelling),
  ]


def conv_encoder_rules(spelling: str = '') -> list[Rule]:
  """The rules of a convolutional encoder and of the local representation."""
  depthwise, pointwise = {
    'transformers': ('depth_wise_conv', 'point_wise_conv'),
  }.get(spelling, ('dwconv', 'pwconv'))
  gamma = '.gamma' if spelling == 'timm' else ''
  return [
    *affine(depthwise, 'depthwise', 'conv', spelling=spelling),
    *batch_norm('norm', 'norm', spelling),
    *affine(f'{pointwise}{{i:1|2}}', 'fc{i}', 'pointwise_conv', spelling=spelling),
    Rule(f'layer_scale{gamma}', 'layer_scale', CHANNELS, spelling=spelling),
  ]


def mlp_rules(spelling: str = '') -> list[Rule]:
  """The rules of a SwiftFormer encoder's MLP."""
  return [
    *batch_norm('norm1', 'norm', spelling),
    *affine('fc{i:1|2}', 'fc{i}', 'pointwise_conv', spelling=spelling),
  ]


def encoder_rules(spelling: str = '') -> list[Rule]:
  """The rules of a SwiftFormer encoder."""
  gamma = '.gamma' if spelling == 'timm' else ''
  return [
    *prefixed(conv_encoder_rules(spelling), 'local_representation.', 'local_representation/'),
    *prefixed(attention_rules(spelling), 'attn.', 'attention/'),
    *prefixed(mlp_rules(spelling), 'linear.', 'mlp/'),
    Rule(f'layer_scale_{{i:1|2}}{gamma}', 'layer_scale{i}', CHANNELS, spelling=spelling),
  ]


def stem_rules(spelling: str = '') -> list[Rule]:
  """The rules of the stem."""
  return [
    *affine('0', 'conv_0', 'conv', spelling=spelling),
    *batch_norm('1', 'norm_0', spelling),
    *affine('3', 'conv_1', 'conv', spelling=spelling),
    *batch_norm('4', 'norm_1', spelling),
  ]


def downsampling_rules(spelling: str = '') -> list[Rule]:
  """The rules of what is between two stages."""
  return [*affine('proj', 'conv', 'conv', spelling=spelling), *batch_norm('norm', 'norm', spelling)]


@correspondence.register_backbone(swiftformer.SwiftFormer)
def model_rules(module: swiftformer.SwiftFormer) -> list[Rule]:
  """The rules of a whole model in the official, timm's and transformers' spelling."""
  rules = []
  for spelling in ('', 'timm', 'transformers'):
    stem = {'': 'patch_embed', 'timm': 'stem'}.get(
      spelling, 'swiftformer.patch_embed.patch_embedding'
    )
    rules += prefixed(stem_rules(spelling), f'{stem}.', 'stem/')
    for s in range(len(module.widths)):
      before, blocks = {
        '': (f'network.{2 * s - 1}', f'network.{2 * s}'),
        'timm': (f'stages.{s}.downsample', f'stages.{s}.blocks'),
        'transformers': (
          f'swiftformer.encoder.network.{2 * s - 1}',
          f'swiftformer.encoder.network.{2 * s}.blocks',
        ),
      }[spelling]
      if s:
        rules += prefixed(downsampling_rules(spelling), f'{before}.', f'downsampling_{s}/')
      for block in (conv_encoder_rules(spelling), encoder_rules(spelling)):
        rules += prefixed(block, f'{blocks}.{{b}}.', f'stage_{s}/block_{{b}}/')
      if not spelling:
        rules += batch_norm(f'norm{2 * s}', f'output_norm_{s}')
    distillation = 'head_dist' if spelling == 'timm' else 'dist_head'
    rules += [
      *batch_norm('norm', 'norm', spelling),
      *affine('head', 'head', 'linear', spelling=spelling),
      *affine(distillation, 'head_distillation', 'linear', spelling=spelling),
    ]
  return rules


def model_taps(module: swiftformer.SwiftFormer) -> dict[str, correspondence.TapLike | None]:
  """The taps of a whole model in the official spelling, and timm's stages."""
  taps: dict[str, correspondence.TapLike | None] = {
    'patch_embed': ('stem', channels_first),
    'norm': ('norm', channels_first),
    'head': 'head',
    'dist_head': 'head_distillation',
  }
  for s, depth in enumerate(module.depths):
    taps[f'network.{2 * s}'] = (f'stage_{s}', lambda result: channels_first(result[0]))
    attention = f'stage_{s}/block_{depth - 1}/attention'
    taps[f'network.{2 * s}.{depth - 1}.attn'] = (attention, lambda result: as_tokens(result[0]))
    # timm's stages begin with the downsampling.
    taps[f'stages.{s}'] = taps[f'network.{2 * s}']
    if module.backbone:
      taps[f'norm{2 * s}'] = (f'output_norm_{s}', channels_first)
    if s:
      taps[f'network.{2 * s - 1}'] = (f'downsampling_{s}', channels_first)
  return taps


@correspondence.register_models('swiftformer', 'swiftformer_*')
def describe(module: swiftformer.SwiftFormer) -> correspondence.Correspondence:
  """Says how a registered SwiftFormer corresponds to the official model and to its ports."""

  def fields(shapes: correspondence.Shapes) -> dict[str, Any]:
    second = {'dist_head.weight', 'head_dist.weight'}
    return {'backbone': 'norm.weight' not in shapes, 'distillation': not second.isdisjoint(shapes)}

  def settings(shapes: correspondence.Shapes) -> dict[str, Any]:
    # The port in transformers, and its files, are of the first generation.
    port = any(key.startswith('swiftformer.') for key in shapes)
    return {'attn_weights': 'ones'} if port else {}

  heads = ('head', 'head_distillation') if module.distillation else ('head',)
  return correspondence.Correspondence(
    rules=model_rules(module),
    call=correspondence.logits_or_maps,
    inputs={'image': correspondence.image_input(module)},
    taps=model_taps(module),
    heads=heads if module.num_classes and not module.backbone else (),
    fields=fields,
    settings=settings,
    config={'hidden_act': {'gelu': {}}, 'batch_norm_eps': {1e-5: {}}},
  )


# The teacher.


def bottleneck_rules() -> list[Rule]:
  """The rules of a RegNet's block."""
  rules = [
    *affine('se.fc{i:1|2}', 'squeeze_excitation/fc{i}', 'pointwise_conv'),
    Rule('downsample.conv.weight', 'shortcut/conv/kernel', 'conv'),
    *batch_norm('downsample.bn', 'shortcut/norm'),
  ]
  for i in (1, 2, 3):
    rules.append(Rule(f'conv{i}.conv.weight', f'conv{i}/conv/kernel', 'conv'))
    rules += batch_norm(f'conv{i}.bn', f'conv{i}/norm')
  return rules


def regnet_rules(module: regnet.RegNet) -> list[Rule]:
  """The rules of a whole RegNet, in timm's spelling, which is DeiT's too."""
  rules = [
    Rule('stem.conv.weight', 'stem/conv/kernel', 'conv'),
    *batch_norm('stem.bn', 'stem/norm'),
    *affine('head.fc', 'head', 'linear'),
  ]
  for s, depth in enumerate(module.depths):
    for b in range(depth):
      rules += prefixed(bottleneck_rules(), f's{s + 1}.b{b + 1}.', f'stage_{s}_block_{b}/')
  return rules


@correspondence.register_models('swiftformer', 'regnety_*')
def describe_regnet(module: regnet.RegNet) -> correspondence.Correspondence:
  """Says how a registered RegNet corresponds to timm's."""
  taps: dict[str, correspondence.TapLike | None] = {'stem': ('stem', channels_first)}
  for s, depth in enumerate(module.depths):
    taps[f's{s + 1}'] = (f'stage_{s}_block_{depth - 1}', channels_first)
  return correspondence.Correspondence(
    rules=regnet_rules(module),
    call=correspondence.logits_or_maps,
    inputs={'image': correspondence.image_input(module)},
    taps=taps,
    heads=('head',) if module.num_classes else (),
  )
