"""SwiftFormer and its PyTorch originals: Amshaker/SwiftFormer, timm, transformers; its teacher."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from einops import rearrange
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from crossattn_jax.attention import efficient_additive
from crossattn_jax.models import registry, swiftformer
from crossattn_jax.models.backbones import regnet
from crossattn_jax.parity import adapters
from crossattn_jax.parity import mapping as mapping_lib
from crossattn_jax.parity.mapping import Rule, prefixed
from crossattn_jax.tasks import losses
from crossattn_jax.training import optimizers, schedules

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


def _nhwc(image: jax.Array) -> jax.Array:
  return rearrange(image, 'b c h w -> b h w c')


def _nchw(image: jax.Array) -> jax.Array:
  return rearrange(image, 'b h w c -> b c h w')


def _tokens(x: jax.Array) -> jax.Array:
  return rearrange(x, 'b h w c -> b (h w) c')


# The correspondence of names, from the inside out.


def _pointwise(name: str) -> mapping_lib.Layout:
  """The layout of a dense layer, bias included, that the original keeps as 1 x 1 convolution."""
  kernel = mapping_lib.LAYOUTS['pointwise_conv']
  return mapping_lib.Layout(
    name,
    lambda shape: kernel.torch_shape(shape) if len(shape) == 2 else shape,
    lambda x, shape: kernel.to_flax(x, shape) if x.ndim == 4 else x,
    lambda x, shape: kernel.to_torch(x, shape) if x.ndim == 2 else x,
  )


_POINTWISE = _pointwise('pointwise')
# A factor per channel: (channels, 1, 1) -> [channels], and w_g: (channels, 1) -> [channels].
_CHANNELS, _COLUMN = (
  mapping_lib.Layout(
    name,
    lambda shape, ones=ones: (*shape, *ones),
    lambda x, shape: x.reshape(shape),
    lambda x, shape: x.reshape(shape),
  )
  for name, ones in (('per channel', (1, 1)), ('column', (1,)))
)


def _affine(
  torch: str, flax: str, layout: str | mapping_lib.Layout, spelling: str = ''
) -> list[Rule]:
  """The rules of a linear map or convolution."""
  return [
    Rule(f'{torch}.weight', f'{flax}/kernel', layout, spelling=spelling),
    Rule(f'{torch}.bias', f'{flax}/bias', layout, spelling=spelling),
  ]


def _norm(torch: str, flax: str, spelling: str = '') -> list[Rule]:
  """The rules of a batch norm."""
  statistics = {'collection': 'batch_stats', 'spelling': spelling}
  return [
    Rule(f'{torch}.weight', f'{flax}/scale', spelling=spelling),
    Rule(f'{torch}.bias', f'{flax}/bias', spelling=spelling),
    Rule(f'{torch}.running_mean', f'{flax}/mean', **statistics),
    Rule(f'{torch}.running_var', f'{flax}/var', **statistics),
    Rule(f'{torch}.num_batches_tracked', None, spelling=spelling),
  ]


def attention_rules(spelling: str = '') -> list[Rule]:
  """The rules of efficient additive attention."""
  return [
    *_affine('to_query', 'query', 'linear', spelling),
    *_affine('to_key', 'key', 'linear', spelling),
    Rule('w_g', 'query_weights', _COLUMN, spelling=spelling),
    *_affine('proj' if spelling else 'Proj', 'projection', 'linear', spelling),
    *_affine('final', 'out', 'linear', spelling),
  ]


def conv_encoder_rules(spelling: str = '') -> list[Rule]:
  """The rules of a convolutional encoder and of the local representation."""
  depthwise, pointwise = {
    'transformers': ('depth_wise_conv', 'point_wise_conv'),
  }.get(spelling, ('dwconv', 'pwconv'))
  gamma = '.gamma' if spelling == 'timm' else ''
  return [
    *_affine(depthwise, 'depthwise', 'conv', spelling),
    *_norm('norm', 'norm', spelling),
    *_affine(f'{pointwise}{{i:1|2}}', 'fc{i}', _POINTWISE, spelling),
    Rule(f'layer_scale{gamma}', 'layer_scale', _CHANNELS, spelling=spelling),
  ]


def mlp_rules(spelling: str = '') -> list[Rule]:
  """The rules of a SwiftFormer encoder's MLP."""
  return [
    *_norm('norm1', 'norm', spelling),
    *_affine('fc{i:1|2}', 'fc{i}', _POINTWISE, spelling),
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
    *_affine('0', 'conv_0', 'conv', spelling),
    *_norm('1', 'norm_0', spelling),
    *_affine('3', 'conv_1', 'conv', spelling),
    *_norm('4', 'norm_1', spelling),
  ]


def downsampling_rules(spelling: str = '') -> list[Rule]:
  """The rules of what is between two stages."""
  return [*_affine('proj', 'conv', 'conv', spelling), *_norm('norm', 'norm', spelling)]


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
        rules += _norm(f'norm{2 * s}', f'output_norm_{s}')
    distillation = 'head_dist' if spelling == 'timm' else 'dist_head'
    rules += [
      *_norm('norm', 'norm', spelling),
      *_affine('head', 'head', 'linear', spelling),
      *_affine(distillation, 'head_distillation', 'linear', spelling),
    ]
  return rules


def model_taps(module: swiftformer.SwiftFormer) -> dict[str, adapters.TapLike | None]:
  """The taps of a whole model in the official spelling, and timm's stages."""
  taps: dict[str, adapters.TapLike | None] = {
    'patch_embed': ('stem', _nchw),
    'norm': ('norm', _nchw),
    'head': 'head',
    'dist_head': 'head_distillation',
  }
  for s, depth in enumerate(module.depths):
    taps[f'network.{2 * s}'] = (f'stage_{s}', lambda result: _nchw(result[0]))
    attention = f'stage_{s}/block_{depth - 1}/attention'
    taps[f'network.{2 * s}.{depth - 1}.attn'] = (attention, lambda result: _tokens(result[0]))
    # timm's stages begin with the downsampling.
    taps[f'stages.{s}'] = taps[f'network.{2 * s}']
    if s:
      taps[f'network.{2 * s - 1}'] = (f'downsampling_{s}', _nchw)
  return taps


@adapters.register_models('swiftformer', 'swiftformer_*')
def describe(module: swiftformer.SwiftFormer) -> adapters.ModelParity:
  """Says how a registered SwiftFormer corresponds to the official model and to its ports."""
  image = jax.ShapeDtypeStruct((1, module.num_channels, *module.image_size), jnp.float32)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    result, _ = model(_nhwc(inputs['image']))
    if module.backbone:
      return {f'c{s + 2}': _nchw(x) for s, x in enumerate(result)}
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


def _with_statistics(
  rules: Sequence[Rule], call: Callable[[nn.Module, Arrays], Arrays]
) -> Callable[[nn.Module, Arrays], Arrays]:
  """Adds the running statistics after the call to its outputs, by the original's keys."""

  def called(model: nn.Module, inputs: Arrays) -> Arrays:
    outputs = dict(call(model, inputs))
    flat = traverse_util.flatten_dict(dict(model.variables['batch_stats']), sep='/')
    for path, value in flat.items():
      keys = (rule.key_of(path) for rule in rules if rule.collection == 'batch_stats')
      outputs[f'after/{next(filter(None, keys))}'] = value
    return outputs

  return called


def _adapter(
  manifest: Manifest,
  module: nn.Module,
  rules: Sequence[Rule],
  call: Callable[[nn.Module, Arrays], Arrays],
  taps: Mapping[str, adapters.TapLike | None] | None = None,
) -> adapters.Adapter:
  """The adapter of a module whose statistics were recorded too, in training mode."""
  train = manifest['mode'] == 'train'
  outputs = [name.removeprefix('out/') for name in manifest['shapes'] if name.startswith('out/')]
  statistics = [name for name in outputs if name.startswith('after/')]
  return adapters.module_adapter(
    manifest,
    module,
    rules=rules,
    call=_with_statistics(rules, call) if statistics else call,
    taps=taps,
    mutable=('batch_stats',) if train else (),
    without_gradient=statistics,
  )


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
    logits, features = model(_nhwc(inputs['image']), train)
    if not train:
      return {'logits': logits}
    return {'cls': features['logits/class'], 'dist': features['logits/distillation']}

  return _adapter(manifest, module, model_rules(module), call, model_taps(module))


@adapters.register_adapter('swiftformer', 'SwiftFormer.features')
def backbone_adapter(manifest: Manifest) -> adapters.Adapter:
  """The backbone of a dense predictor."""
  module = _model(manifest, backbone=True)
  return _adapter(manifest, module, model_rules(module), describe(module).call)


@adapters.register_adapter('swiftformer', 'SwiftFormer+loss')
def training_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """A classifier in training mode and its loss against targets and a teacher."""
  module = _model(manifest)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    _, features = model(_nhwc(inputs['image']), train=True)
    return _distillation(
      manifest,
      losses.soft_target_cross_entropy(features['logits/class'], inputs['labels']),
      features['logits/distillation'],
      inputs['teacher'],
    )

  return _adapter(manifest, module, prefixed(model_rules(module), 'model.'), call)


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
    result = bound(_nhwc(inputs['x']), train)
    return {'y': _nchw(result[0] if isinstance(result, tuple) else result)}

  return _adapter(manifest, module, rules, call, taps)


@adapters.register_adapter('swiftformer', 'stem')
def stem_adapter(manifest: Manifest) -> adapters.Adapter:
  """The stem."""
  module = swiftformer.Stem(manifest['constructor']['out_chs'], _options())
  taps = {'0': ('conv_0', _nchw), '3': ('conv_1', _nchw)}
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
    'local_representation': ('local_representation', _nchw),
    'attn': ('attention', lambda result: _tokens(result[0])),
    'linear': ('mlp', _nchw),
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
    *_affine('se.fc{i:1|2}', 'squeeze_excitation/fc{i}', _POINTWISE),
    Rule('downsample.conv.weight', 'shortcut/conv/kernel', 'conv'),
    *_norm('downsample.bn', 'shortcut/norm'),
  ]
  for i in (1, 2, 3):
    rules.append(Rule(f'conv{i}.conv.weight', f'conv{i}/conv/kernel', 'conv'))
    rules += _norm(f'conv{i}.bn', f'conv{i}/norm')
  return rules


def regnet_rules(module: regnet.RegNet) -> list[Rule]:
  """The rules of a whole RegNet, in timm's spelling, which is DeiT's too."""
  rules = [
    Rule('stem.conv.weight', 'stem/conv/kernel', 'conv'),
    *_norm('stem.bn', 'stem/norm'),
    *_affine('head.fc', 'head', 'linear'),
  ]
  for s, depth in enumerate(module.depths):
    for b in range(depth):
      rules += prefixed(bottleneck_rules(), f's{s + 1}.b{b + 1}.', f'stage_{s}_block_{b}/')
  return rules


@adapters.register_models('swiftformer', 'regnety_*')
def describe_regnet(module: regnet.RegNet) -> adapters.ModelParity:
  """Says how a registered RegNet corresponds to timm's."""
  taps: dict[str, adapters.TapLike | None] = {'stem': ('stem', _nchw)}
  for s, depth in enumerate(module.depths):
    taps[f's{s + 1}'] = (f'stage_{s}_block_{depth - 1}', _nchw)
  return adapters.ModelParity(
    rules=regnet_rules(module),
    call=lambda model, inputs: {'logits': model(_nhwc(inputs['image']))[0]},
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
  return _adapter(manifest, module, described.rules, described.call, described.taps)


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
  layouts = {
    'conv': ('kernel', mapping_lib.LAYOUTS['conv']),
    'dwconv': ('kernel', mapping_lib.LAYOUTS['conv']),
    'linear': ('kernel', mapping_lib.LAYOUTS['linear']),
    'bias': ('bias', mapping_lib.LAYOUTS['identity']),
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
    flat = {name: inputs[f'{prefix}_{name}'] for name in layouts}
    return {
      name: {layouts[name][0]: layouts[name][1].to_flax(x, flax_shapes[name](x.shape))}
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
      for name, (leaf, layout) in layouts.items()
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
