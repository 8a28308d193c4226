"""SwiftFormer and its PyTorch originals: Amshaker/SwiftFormer, timm, transformers; its teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import efficient_additive
from crossattn_jax.models import registry, swiftformer
from crossattn_jax.models.backbones import regnet
from crossattn_jax.parity import adapters, layouts
from crossattn_jax.parity.layouts import as_tokens, channels_first, channels_last
from crossattn_jax.parity.mapping import Rule, prefixed
from crossattn_jax.parity.rules import affine, batch_norm
from crossattn_jax.tasks import losses
from crossattn_jax.training import optimizers, schedules

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


# The correspondence of names, from the inside out.


# A factor per channel: (channels, 1, 1) -> [channels], and w_g: (channels, 1) -> [channels].
_CHANNELS, _COLUMN = (
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
    Rule('w_g', 'query_weights', _COLUMN, spelling=spelling),
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
    Rule(f'layer_scale{gamma}', 'layer_scale', _CHANNELS, spelling=spelling),
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
    Rule(f'layer_scale_{{i:1|2}}{gamma}', 'layer_scale{i}', _CHANNELS, spelling=spelling),
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


def model_taps(module: swiftformer.SwiftFormer) -> dict[str, adapters.TapLike | None]:
  """The taps of a whole model in the official spelling, and timm's stages."""
  taps: dict[str, adapters.TapLike | None] = {
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
    if s:
      taps[f'network.{2 * s - 1}'] = (f'downsampling_{s}', channels_first)
  return taps


@adapters.register_models('swiftformer', 'swiftformer_*')
def describe(module: swiftformer.SwiftFormer) -> adapters.ModelParity:
  """Says how a registered SwiftFormer corresponds to the official model and to its ports."""
  image = jax.ShapeDtypeStruct((1, module.num_channels, *module.image_size), jnp.float32)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    result, _ = model(channels_last(inputs['image']))
    if module.backbone:
      return {f'c{s + 2}': channels_first(x) for s, x in enumerate(result)}
    return {'logits': result}

  heads = ('head', 'head_distillation') if module.distillation else ('head',)
  return adapters.ModelParity(
    rules=model_rules(module),
    call=call,
    inputs={'image': image},
    taps=model_taps(module),
    heads=heads if module.num_classes and not module.backbone else (),
  )


# Whole models.


def _model(manifest: Manifest, **fields: Any) -> swiftformer.SwiftFormer:
  """The model of an official constructor."""
  arguments = manifest['constructor']
  return registry.create_model(
    arguments['model'].lower(),
    num_classes=arguments.get('num_classes', 1000),
    distillation=arguments.get('distillation', True),
    attn_weights=arguments.get('weights', 'l2'),
    **fields,
  )


@adapters.register_adapter('swiftformer', 'SwiftFormer')
def model_adapter(manifest: Manifest) -> adapters.Adapter:
  """A whole classifier; in training mode with its two outputs."""
  module = _model(manifest)
  train = manifest['mode'] == 'train'

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    logits, features = model(channels_last(inputs['image']), train)
    if not train:
      return {'logits': logits}
    return {'cls': features['logits/class'], 'dist': features['logits/distillation']}

  return adapters.module_adapter(
    manifest, module, rules=model_rules(module), call=call, taps=model_taps(module)
  )


@adapters.register_adapter('swiftformer', 'SwiftFormer.features')
def backbone_adapter(manifest: Manifest) -> adapters.Adapter:
  """The backbone of a dense predictor."""
  module = _model(manifest, backbone=True)
  return adapters.module_adapter(
    manifest, module, rules=model_rules(module), call=describe(module).call
  )


@adapters.register_adapter('swiftformer', 'SwiftFormer+loss')
def training_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """A classifier in training mode and its loss against targets and a teacher."""
  module = _model(manifest)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    _, features = model(channels_last(inputs['image']), train=True)
    return _distillation(
      manifest,
      losses.soft_target_cross_entropy(features['logits/class'], inputs['labels']),
      features['logits/distillation'],
      inputs['teacher'],
    )

  return adapters.module_adapter(
    manifest, module, rules=prefixed(model_rules(module), 'model.'), call=call
  )


# Parts of a model.


def _options(**fields: Any) -> swiftformer.Options:
  return swiftformer.Options(**fields)


def _map_adapter(
  manifest: Manifest,
  module: nn.Module,
  rules: Sequence[Rule],
  taps: Mapping[str, adapters.TapLike | None] | None = None,
) -> adapters.Adapter:
  """The adapter of a module from map to map."""
  train = manifest['mode'] == 'train'

  def call(bound: nn.Module, inputs: Arrays) -> Arrays:
    result = bound(channels_last(inputs['x']), train)
    return {'y': channels_first(result[0] if isinstance(result, tuple) else result)}

  return adapters.module_adapter(manifest, module, rules=rules, call=call, taps=taps)


@adapters.register_adapter('swiftformer', 'stem')
def stem_adapter(manifest: Manifest) -> adapters.Adapter:
  """The stem."""
  module = swiftformer.Stem(manifest['constructor']['out_chs'], _options())
  taps = {'0': ('conv_0', channels_first), '3': ('conv_1', channels_first)}
  return _map_adapter(manifest, module, stem_rules(), taps)


@adapters.register_adapter('swiftformer', 'embedding')
def downsampling_adapter(manifest: Manifest) -> adapters.Adapter:
  """What is between two stages."""
  module = swiftformer.Downsampling(manifest['constructor']['embed_dim'], _options())
  return _map_adapter(manifest, module, downsampling_rules())


@adapters.register_adapter('swiftformer', 'conv_encoder')
def conv_encoder_adapter(manifest: Manifest) -> adapters.Adapter:
  """A convolutional encoder."""
  arguments = manifest['constructor']
  module = swiftformer.ConvEncoder(arguments['hidden_dim'] / arguments['dim'], 0.0, _options())
  return _map_adapter(manifest, module, conv_encoder_rules())


@adapters.register_adapter('swiftformer', 'local_representation')
def local_representation_adapter(manifest: Manifest) -> adapters.Adapter:
  """The local representation."""
  return _map_adapter(manifest, swiftformer.ConvEncoder(1, 0.0, _options()), conv_encoder_rules())


@adapters.register_adapter('swiftformer', 'mlp')
def mlp_adapter(manifest: Manifest) -> adapters.Adapter:
  """A SwiftFormer encoder's MLP."""
  arguments = manifest['constructor']
  ratio = arguments['hidden_features'] / arguments['in_features']
  return _map_adapter(manifest, swiftformer.FeedForward(_options(mlp_ratio=ratio)), mlp_rules())


@adapters.register_adapter('swiftformer', 'encoder_block')
def encoder_adapter(manifest: Manifest) -> adapters.Adapter:
  """A SwiftFormer encoder."""
  arguments = manifest['constructor']
  options = _options(
    mlp_ratio=arguments['mlp_ratio'],
    layer_scale=1e-5 if arguments.get('use_layer_scale', True) else None,
  )
  taps = {
    'local_representation': ('local_representation', channels_first),
    'attn': ('attention', lambda result: as_tokens(result[0])),
    'linear': ('mlp', channels_first),
  }
  module = swiftformer.SwiftFormerEncoder(0.0, options)
  return _map_adapter(manifest, module, encoder_rules(), taps)


@adapters.register_adapter('swiftformer', 'additive_attention')
def attention_adapter(manifest: Manifest) -> adapters.Adapter:
  """Efficient additive attention on tokens."""
  arguments = manifest['constructor']
  module = efficient_additive.EfficientAdditiveAttention(
    num_heads=arguments['num_heads'],
    head_dim=arguments['token_dim'],
    normalization=arguments.get('weights', 'l2'),
  )
  return adapters.module_adapter(
    manifest,
    module,
    rules=attention_rules(),
    call=lambda attention, inputs: {'y': attention(inputs['x'])},
    taps={'to_query': 'query', 'to_key': 'key', 'Proj': 'projection'},
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


@adapters.register_models('swiftformer', 'regnety_*')
def describe_regnet(module: regnet.RegNet) -> adapters.ModelParity:
  """Says how a registered RegNet corresponds to timm's."""
  taps: dict[str, adapters.TapLike | None] = {'stem': ('stem', channels_first)}
  for s, depth in enumerate(module.depths):
    taps[f's{s + 1}'] = (f'stage_{s}_block_{depth - 1}', channels_first)
  return adapters.ModelParity(
    rules=regnet_rules(module),
    call=lambda model, inputs: {'logits': model(channels_last(inputs['image']))[0]},
    inputs={
      'image': jax.ShapeDtypeStruct((1, module.num_channels, *module.image_size), jnp.float32)
    },
    taps=taps,
    heads=('head',) if module.num_classes else (),
  )


@adapters.register_adapter('swiftformer', 'teacher_regnety')
def teacher_adapter(manifest: Manifest) -> adapters.Adapter:
  """The whole teacher."""
  arguments = manifest['constructor']
  module = registry.create_model(arguments['model'], num_classes=arguments['num_classes'])
  described = describe_regnet(module)
  return adapters.module_adapter(
    manifest, module, rules=described.rules, call=described.call, taps=described.taps
  )


@adapters.register_adapter('swiftformer', 'teacher_regnet_bottleneck')
def bottleneck_adapter(manifest: Manifest) -> adapters.Adapter:
  """A block of the teacher."""
  arguments = manifest['constructor']
  module = regnet.Bottleneck(
    arguments['out_chs'], arguments['stride'], arguments['group_width'], arguments['se_ratio']
  )
  return _map_adapter(manifest, module, bottleneck_rules())


# Functions.


def _distillation(
  manifest: Manifest, base: jax.Array, logits_kd: jax.Array, teacher: jax.Array
) -> Arrays:
  """The loss against labels, one per example, blended with that against a teacher."""
  arguments = manifest['constructor']
  if arguments['distillation_type'] == 'none':
    return {'loss': base.mean(keepdims=True)}
  if arguments['distillation_type'] == 'soft':
    distilled = losses.soft_distillation_loss(logits_kd, teacher, arguments['tau'])
  else:
    distilled = losses.hard_distillation_loss(logits_kd, teacher)
  alpha = arguments['alpha']
  return {'loss': ((1 - alpha) * base + alpha * distilled).mean(keepdims=True)}


@adapters.register_adapter('swiftformer', 'DistillationLoss')
def distillation_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """Cross entropy, smoothed or against soft targets, and distillation."""
  smoothed = manifest['constructor']['base'] == 'LabelSmoothingCrossEntropy'

  def run(out: jax.Array, out_kd: jax.Array, teacher: jax.Array, labels: jax.Array) -> Arrays:
    if smoothed:
      base = losses.label_smoothing_cross_entropy(out, labels, 0.1)
    else:
      base = losses.soft_target_cross_entropy(out, labels)
    return _distillation(manifest, base, out_kd, teacher)

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('swiftformer', 'adaptive_gradient_clipping')
def clipping_adapter(manifest: Manifest) -> adapters.Adapter:
  """Adaptive gradient clipping of one parameter of each kind."""
  arguments = manifest['constructor']
  kinds = {
    'conv': ('kernel', layouts.LAYOUTS['conv']),
    'dwconv': ('kernel', layouts.LAYOUTS['conv']),
    'linear': ('kernel', layouts.LAYOUTS['linear']),
    'bias': ('bias', layouts.LAYOUTS['identity']),
    'w_g': ('query_weights', _COLUMN),
    'layer_scale': ('layer_scale1', _CHANNELS),
  }
  flax_shapes = {
    'conv': lambda shape: (*shape[2:], shape[1], shape[0]),
    'dwconv': lambda shape: (*shape[2:], shape[1], shape[0]),
    'linear': lambda shape: shape[::-1],
    'bias': lambda shape: shape,
    'w_g': lambda shape: shape[:1],
    'layer_scale': lambda shape: shape[:1],
  }

  def tree(prefix: str, inputs: Arrays) -> dict[str, Any]:
    flat = {name: inputs[f'{prefix}_{name}'] for name in kinds}
    return {
      name: {kinds[name][0]: kinds[name][1].to_flax(x, flax_shapes[name](x.shape))}
      for name, x in flat.items()
    }

  def run(**inputs: jax.Array) -> Arrays:
    clip = optimizers.adaptive_clip(
      arguments['clip_factor'], swiftformer.CHANNEL_FACTORS, arguments['eps']
    )
    params, gradients = tree('p', inputs), tree('g', inputs)
    clipped, _ = clip.update(gradients, clip.init(params), params)
    return {
      name: layout.to_torch(clipped[name][leaf], inputs[f'p_{name}'].shape)
      for name, (leaf, layout) in kinds.items()
    }

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('swiftformer', 'lr_schedule')
def schedule_adapter(manifest: Manifest) -> adapters.Adapter:
  """The learning rate of each epoch, with the code's and the paper's base rate."""
  epochs, steps_per_epoch = manifest['shapes']['out/code'][0], 10

  def rates(base: float) -> jax.Array:
    config = schedules.default_config()
    config.minimum, config.warmup_epochs, config.warmup_start = 1e-5, 5.0, 1e-6
    config.decay_after_warmup, config.per_epoch, config.epochs_late = False, True, 1
    schedule = schedules.create_schedule(
      config, base_lr=base, total_steps=epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch
    )
    return schedule(jnp.arange(epochs) * steps_per_epoch)

  return adapters.function_adapter(lambda: {'code': rates(2e-3), 'paper': rates(1e-3)})
