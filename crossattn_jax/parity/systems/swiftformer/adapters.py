"""Recorded cases of SwiftFormer: whole models and its teacher, and their parts one by one."""

from collections.abc import Mapping
import fractions
from typing import Any

from flax import linen as nn
import jax

from crossattn_jax.attention import efficient_additive
from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.conversion.layouts import as_tokens, channels_first, channels_last, first_map
from crossattn_jax.conversion.mapping import prefixed
from crossattn_jax.conversion.systems import swiftformer as swiftformer_rules
from crossattn_jax.models import registry, swiftformer
from crossattn_jax.models.backbones import regnet
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.parity.systems.swiftformer import functions

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# Arguments of the originals -> fields of the model, whose value is meant where a case is silent.
_FIELDS = {
  'num_classes': 'num_classes',
  'in_chans': 'num_channels',
  'embed_dims': 'widths',
  'layers': 'depths',
  'mlp_ratios': 'mlp_ratio',
  'distillation': 'distillation',
  'weights': 'attn_weights',
}


def _train(manifest: Manifest) -> bool:
  return manifest['mode'] == 'train'


def _layer_scale(c: arguments.Arguments) -> float | None:
  """Of attention and MLP; its initial value changes nothing, but None leaves it out."""
  c.ignore('layer_scale_init_value')
  return 1e-5 if c.get('use_layer_scale', True) else None


def model_of(c: arguments.Arguments, backbone: bool = False) -> swiftformer.SwiftFormer:
  """The model of an official constructor; `backbone` where it does not say `fork_feat`."""
  base = registry.create_model(c.get('model', 'swiftformer_xs').lower())
  c.ignore('down_patch_size', only=(3,))
  c.ignore('down_stride', only=(2,))
  c.ignore('down_pad', 'vit_num', only=(1,))
  c.ignore('init_cfg', 'pretrained', 'fuse')
  c.ignore_rates('drop_rate', 'drop_path_rate')
  fields = {field: c.get(argument, getattr(base, field)) for argument, field in _FIELDS.items()}
  return base.clone(
    **{name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()},
    layer_scale=_layer_scale(c),
    backbone=c.get('fork_feat', backbone),
  )


def _outputs(manifest: Manifest, model: nn.Module, image: jax.Array) -> Arrays:
  """Logits and those of each head, or the four maps of a dense predictor."""
  result, features = model(channels_last(image), _train(manifest))
  if model.backbone:
    return {f'c{s + 2}': channels_first(x) for s, x in enumerate(result)}
  outputs = {'logits': result}
  if model.distillation:
    # Without classes a head returns what it gets.
    outputs['cls'] = features.get('logits/class', result)
    outputs['dist'] = features.get('logits/distillation', result)
  return outputs


def _model_adapter(manifest: Manifest, module: swiftformer.SwiftFormer) -> adapters.Adapter:
  return adapters.module_adapter(
    manifest,
    module,
    rules=swiftformer_rules.model_rules(module),
    call=lambda model, inputs: _outputs(manifest, model, inputs['image']),
    taps=swiftformer_rules.model_taps(module),
  )


@adapters.register_adapter('swiftformer', 'SwiftFormer')
def _classifier(manifest: Manifest) -> adapters.Adapter:
  return _model_adapter(manifest, model_of(manifest['constructor']))


@adapters.register_adapter('swiftformer', 'SwiftFormer.features')
def _backbone(manifest: Manifest) -> adapters.Adapter:
  return _model_adapter(manifest, model_of(manifest['constructor'], backbone=True))


@adapters.register_adapter('swiftformer', 'SwiftFormer+loss')
def _classifier_and_loss(manifest: Manifest) -> adapters.Adapter:
  """A classifier and its loss against labels and, where it distils, a teacher."""
  module = model_of(manifest['constructor'])
  loss = functions.loss_of(manifest['constructor'], distils=module.distillation)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    outputs = _outputs(manifest, model, inputs['image'])
    value = loss(outputs['logits'], inputs['labels'], outputs.get('dist'), inputs.get('teacher'))
    return {'loss': value, **outputs}

  return adapters.module_adapter(
    manifest,
    module,
    rules=prefixed(swiftformer_rules.model_rules(module), 'model.'),
    call=call,
    taps={f'model.{name}': tap for name, tap in swiftformer_rules.model_taps(module).items()},
  )


# Parts of a model.


def _map_adapter(
  manifest: Manifest,
  module: nn.Module,
  rules: list[mapping_lib.Rule],
  taps: Mapping[str, correspondence.TapLike | None] | None = None,
) -> adapters.Adapter:
  """The adapter of a module from a map to a map."""
  return adapters.module_adapter(
    manifest,
    module,
    rules=rules,
    call=lambda bound, inputs: {
      'y': first_map(bound(channels_last(inputs['x']), _train(manifest)))
    },
    taps=taps,
  )


@adapters.register_adapter('swiftformer', 'stem')
def _stem(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('in_chs')
  module = swiftformer.Stem(c['out_chs'], swiftformer.Options())
  taps = {'0': ('conv_0', channels_first), '3': ('conv_1', channels_first)}
  return _map_adapter(manifest, module, swiftformer_rules.stem_rules(), taps)


@adapters.register_adapter('swiftformer', 'embedding')
def _downsampling(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('in_chans')
  window = c.get('patch_size', 3), c.get('stride', 2), c.get('padding', 1)
  module = swiftformer.Downsampling(c['embed_dim'], swiftformer.Options(), *window)
  return _map_adapter(manifest, module, swiftformer_rules.downsampling_rules())


def _conv_encoder_adapter(manifest: Manifest, ratio: fractions.Fraction | int) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore_rates('drop_path')
  branch = c.get('kernel_size', 3), c.get('use_layer_scale', True)
  module = swiftformer.ConvEncoder(ratio, 0.0, swiftformer.Options(), *branch)
  return _map_adapter(manifest, module, swiftformer_rules.conv_encoder_rules())


@adapters.register_adapter('swiftformer', 'conv_encoder')
def _conv_encoder(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  return _conv_encoder_adapter(manifest, fractions.Fraction(c.get('hidden_dim', 64), c['dim']))


@adapters.register_adapter('swiftformer', 'local_representation')
def _local_representation(manifest: Manifest) -> adapters.Adapter:
  manifest['constructor'].ignore('dim')
  return _conv_encoder_adapter(manifest, 1)


@adapters.register_adapter('swiftformer', 'mlp')
def _mlp(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  width = c['in_features']
  c.ignore_rates('drop')
  ratio = fractions.Fraction(c.get('hidden_features', width), width)
  module = swiftformer.FeedForward(swiftformer.Options(mlp_ratio=ratio), c.get('out_features'))
  return _map_adapter(manifest, module, swiftformer_rules.mlp_rules())


@adapters.register_adapter('swiftformer', 'encoder_block')
def _encoder(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('dim')
  c.ignore_rates('drop', 'drop_path')
  options = swiftformer.Options(
    mlp_ratio=c.get('mlp_ratio', 4),
    layer_scale=_layer_scale(c),
    attn_weights=c.get('weights', 'l2'),
  )
  taps = {
    'local_representation': ('local_representation', channels_first),
    'attn': ('attention', lambda result: as_tokens(result[0])),
    'linear': ('mlp', channels_first),
  }
  module = swiftformer.SwiftFormerEncoder(0.0, options)
  return _map_adapter(manifest, module, swiftformer_rules.encoder_rules(), taps)


@adapters.register_adapter('swiftformer', 'additive_attention')
def _attention(manifest: Manifest) -> adapters.Adapter:
  """On tokens."""
  c = manifest['constructor']
  c.ignore('in_dims')
  module = efficient_additive.EfficientAdditiveAttention(
    num_heads=c.get('num_heads', 1),
    head_dim=c['token_dim'],
    normalization=c.get('weights', 'l2'),
  )
  return adapters.module_adapter(
    manifest,
    module,
    rules=swiftformer_rules.attention_rules(),
    call=lambda attention, inputs: {'y': attention(inputs['x'])},
    taps={'to_query': 'query', 'to_key': 'key', 'Proj': 'projection', 'final': 'out'},
  )


# The teacher.


@adapters.register_adapter('swiftformer', 'teacher_regnety')
def _teacher(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('global_pool', only=('avg',))
  c.ignore_rates('drop_rate', 'drop_path_rate')
  module = registry.create_model(
    c.get('model', 'regnety_160'),
    num_classes=c.get('num_classes', 1000),
    num_channels=c.get('in_chans', 3),
  )
  described = swiftformer_rules.describe_regnet(module)
  return adapters.module_adapter(
    manifest,
    module,
    rules=described.rules,
    call=lambda model, inputs: {
      'logits': model(channels_last(inputs['image']), _train(manifest))[0]
    },
    taps=described.taps,
  )


@adapters.register_adapter('swiftformer', 'teacher_regnet_bottleneck')
def _bottleneck(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  # Of the shortcut, which is there where size or channels change.
  c.ignore('in_chs', 'downsample')
  module = regnet.Bottleneck(
    c['out_chs'], c.get('stride', 1), c['group_width'], c.get('se_ratio', 0.25)
  )
  return _map_adapter(manifest, module, swiftformer_rules.bottleneck_rules())
