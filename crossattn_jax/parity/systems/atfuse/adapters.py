"""ATFuse and its PyTorch original, songlei-xiong/ATFuse; its losses, and the fusion metrics."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.attention import information_injection
from crossattn_jax.metrics import image_fusion as metrics
from crossattn_jax.models import atfuse
from crossattn_jax.parity import adapters
from crossattn_jax.parity.layouts import channels_first, channels_last
from crossattn_jax.parity.mapping import Rule, prefixed
from crossattn_jax.parity.rules import affine, batch_norm
from crossattn_jax.tasks.image_fusion import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# The original's blocks in the order of the forward pass.
_BLOCKS = {'mhca_stage': 'discrepancy', 'mhca_stage1_2': 'common_0', 'mhca_stage2': 'common_1'}
# Their index in the original's lists of stems and patch embeddings.
_IMAGES = ('infrared', 'visible')


def _first(result: tuple[jax.Array, jax.Array]) -> jax.Array:
  return channels_first(result[0])


# The correspondence of names, from the inside out.


def stem_rules() -> list[Rule]:
  """The rules of a stem."""
  return [Rule('conv.weight', 'conv/kernel', 'conv'), *batch_norm('bn', 'norm')]


def patch_embedding_rules() -> list[Rule]:
  """The rules of a patch embedding."""
  return [
    Rule('dwconv.weight', 'depthwise/kernel', 'conv'),
    Rule('pwconv.weight', 'pointwise/kernel', 'pointwise_conv'),
    *batch_norm('bn', 'norm'),
  ]


def attention_rules() -> list[Rule]:
  """The rules of an attention."""
  rules = affine('proj', 'out', 'linear_heads_in')
  for torch, flax in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    rules += affine(torch, flax, 'linear_heads_out')
  return rules


def injection_rules() -> list[Rule]:
  """The rules of an injection."""
  return [
    *prefixed(attention_rules(), 'factoratt_crpe.', 'attention/'),
    *affine('mlp.fc{i:1|2}', 'mlp/fc{i}', 'linear'),
    Rule('norm2.weight', 'norm/scale'),
    Rule('norm2.bias', 'norm/bias'),
  ]


def upsampling_rules() -> list[Rule]:
  """The rules of the decoder's upsampling, with a sum or with a concatenation."""
  return [
    *affine('conv11_headSum', 'join', 'conv'),
    *affine('conv12', 'expand', 'conv'),
    *affine('conv11_tail', 'refine', 'conv'),
  ]


def residual_head_rules() -> list[Rule]:
  """The rules of a residual head."""
  return affine('conv{i:1|2}', 'conv{i}', 'conv')


def model_rules(module: atfuse.ATFuse) -> list[Rule]:
  """The rules of a whole model; what the original never uses is kept where `module` holds it."""
  rules = []
  for i, name in enumerate(_IMAGES):
    rules += prefixed(stem_rules(), f'stem1.{i}.', f'stem_{name}/')
    patch = f'patch_embed_stages1.patch_embeds.{i}.patch_conv.'
    rules += prefixed(patch_embedding_rules(), patch, f'patch_embedding_{name}/')
  for torch, flax in _BLOCKS.items():
    rules += prefixed(injection_rules(), f'{torch}.', f'{flax}/')
  decoder = upsampling_rules()
  if not module.feature_sum:
    decoder = affine('conv11_head', 'join', 'conv') + decoder[2:]
  rules += prefixed(decoder, 'up_scale1_aggregate.', 'decoder/')
  rules += prefixed(residual_head_rules(), 'head.', 'reconstruction_0/')
  rules += prefixed(residual_head_rules(), 'head_final.', 'reconstruction_1/')
  for key in module.unused_shapes():
    rules.append(Rule(key, key if module.unused_parameters else None, collection='unused'))
  return [*rules, Rule('{any:.*}.num_batches_tracked', None)]


def model_taps() -> dict[str, adapters.TapLike | None]:
  """The taps of a whole model."""
  taps: dict[str, adapters.TapLike | None] = {
    'up_scale1_aggregate': ('decoder', channels_first),
    'head': ('reconstruction_0', channels_first),
    'head_final': ('reconstruction_1', channels_first),
  }
  for i, name in enumerate(_IMAGES):
    taps[f'stem1.{i}'] = (f'stem_{name}', channels_first)
    taps[f'patch_embed_stages1.patch_embeds.{i}'] = (f'patch_embedding_{name}', channels_first)
  return taps | {torch: (flax, _first) for torch, flax in _BLOCKS.items()}


@adapters.register_models('atfuse', 'atfuse*')
def describe(module: atfuse.ATFuse) -> adapters.ModelParity:
  """Says how a registered ATFuse corresponds to the official model."""
  image = jax.ShapeDtypeStruct((1, 1, *module.image_size), jnp.float32)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    fused, features = model(channels_last(inputs['vi']), channels_last(inputs['ir']))
    return {
      'pred': channels_first(fused),
      'k': channels_first(features['visible']),
      'v': channels_first(features['infrared']),
    }

  return adapters.ModelParity(
    rules=model_rules(module), call=call, inputs={'vi': image, 'ir': image}, taps=model_taps()
  )


# Whole models.


def _model(manifest: Manifest) -> atfuse.ATFuse:
  """The model of an official constructor, with all that it creates."""
  arguments = manifest['constructor']
  return atfuse.ATFuse(
    width=arguments.get('embed_dims', (64,))[0],
    num_heads=arguments.get('num_heads', 4),
    mlp_ratio=arguments.get('mlp_ratio', 3),
    feature_sum=arguments.get('feature_sum', True),
    unused_parameters=True,
  )


@adapters.register_adapter('atfuse', 'ATFuse')
def model_adapter(manifest: Manifest) -> adapters.Adapter:
  """A whole model."""
  module = _model(manifest)
  outputs = [name.removeprefix('out/') for name in manifest['shapes'] if name.startswith('out/')]

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    train = manifest['mode'] == 'train'
    fused, features = model(channels_last(inputs['vi']), channels_last(inputs['ir']), train)
    found = {'pred': fused, 'k': features['visible'], 'v': features['infrared']}
    return {name: channels_first(found[name]) for name in outputs}

  return adapters.module_adapter(
    manifest,
    module,
    rules=model_rules(module),
    call=call,
    taps=model_taps(),
  )


@adapters.register_adapter('atfuse', 'ATFuse+loss')
def training_adapter(manifest: Manifest) -> adapters.Adapter:
  """A whole model in training mode and its loss."""
  module = _model(manifest)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    visible, infrared = channels_last(inputs['vi']), channels_last(inputs['ir'])
    fused, _ = model(visible, infrared, train=True)
    loss = losses.fusion_loss(fused, visible, infrared)
    return {'pred': channels_first(fused), 'loss': loss.total.mean()}

  return adapters.module_adapter(
    manifest,
    module,
    rules=prefixed(model_rules(module), 'net.'),
    call=call,
  )


# Parts of a model.


def _map_adapter(manifest: Manifest, module: nn.Module, rules: list[Rule]) -> adapters.Adapter:
  train = manifest['mode'] == 'train'
  return adapters.module_adapter(
    manifest,
    module,
    rules=rules,
    call=lambda bound, inputs: {'out': channels_first(bound(channels_last(inputs['x']), train))},
  )


@adapters.register_adapter('atfuse', 'conv_bn_stem')
def stem_adapter(manifest: Manifest) -> adapters.Adapter:
  """A stem."""
  return _map_adapter(manifest, atfuse.Stem(manifest['shapes']['out/out'][1]), stem_rules())


@adapters.register_adapter('atfuse', 'dwconv_bn')
def patch_embedding_adapter(manifest: Manifest) -> adapters.Adapter:
  """A patch embedding."""
  return _map_adapter(manifest, atfuse.PatchEmbedding(), patch_embedding_rules())


@adapters.register_adapter('atfuse', 'res_block')
def residual_head_adapter(manifest: Manifest) -> adapters.Adapter:
  """A residual head."""
  return adapters.module_adapter(
    manifest,
    atfuse.ResidualHead(manifest['constructor']['out_channels']),
    rules=residual_head_rules(),
    call=lambda head, inputs: {'out': channels_first(head(channels_last(inputs['x'])))},
  )


@adapters.register_adapter('atfuse', 'upscale')
def upsampling_adapter(manifest: Manifest) -> adapters.Adapter:
  """The decoder's upsampling."""
  feature_sum = manifest['constructor']['is_feature_sum']
  rules = upsampling_rules()
  if not feature_sum:
    rules = affine('conv11_head', 'join', 'conv') + rules[2:]
  return adapters.module_adapter(
    manifest,
    atfuse.Upsampling(feature_sum),
    rules=rules,
    call=lambda module, inputs: {
      'out': channels_first(module(channels_last(inputs['x']), channels_last(inputs['skip'])))
    },
  )


def _injection(manifest: Manifest) -> str:
  return 'common' if manifest['constructor']['minus'] else 'discrepancy'


@adapters.register_adapter('atfuse', 'factor_att')
def attention_adapter(manifest: Manifest) -> adapters.Adapter:
  """The attention on tokens."""
  return adapters.module_adapter(
    manifest,
    information_injection.InjectionAttention(
      manifest['constructor']['num_heads'], _injection(manifest)
    ),
    rules=attention_rules(),
    call=lambda attention, inputs: {'out': attention(inputs['q'], inputs['k'], inputs['v'])[0]},
  )


class _WithUnused(nn.Module):
  """An injection, and the linear map that the original's owns and never uses."""

  block: nn.Module

  @nn.compact
  def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    channels = query.shape[-1]
    self.variable('unused', 'weight', jnp.zeros, (channels, 2 * channels))
    self.variable('unused', 'bias', jnp.zeros, (channels,))
    return self.block(query, key, value)[0]


@adapters.register_adapter('atfuse', 'mhca_block')
def injection_adapter(manifest: Manifest) -> adapters.Adapter:
  """An injection."""
  arguments = manifest['constructor']
  block = information_injection.InformationInjection(
    arguments['num_heads'], arguments['mlp_ratio'], _injection(manifest)
  )
  unused = [Rule(f'fuse.{name}', name, collection='unused') for name in ('weight', 'bias')]
  return adapters.module_adapter(
    manifest,
    _WithUnused(block),
    rules=[*prefixed(injection_rules(), flax='block/'), *unused],
    call=lambda module, inputs: {
      'out': channels_first(module(*(channels_last(inputs[name]) for name in ('q', 'k', 'v'))))
    },
  )


# Losses and metrics.


@adapters.register_adapter('atfuse', 'loss_fusion')
def loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """The loss and its terms."""
  del manifest

  def run(fused: jax.Array, vi: jax.Array, ir: jax.Array) -> Arrays:
    loss = losses.fusion_loss(*map(channels_last, (fused, vi, ir)))
    return {
      'total': loss.total.mean(),
      'gradient': loss.gradient.mean(),
      'intensity': loss.intensity.mean(),
    }

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('atfuse', 'loss_segment_mask')
def segment_adapter(manifest: Manifest) -> adapters.Adapter:
  """The segments of the loss. Masks are numbers in the original; k is the threshold's rank."""
  del manifest

  def run(vi: jax.Array, ir: jax.Array) -> Arrays:
    visible, infrared = channels_last(vi), channels_last(ir)
    (share, _), *_ = losses.SEGMENTS
    masks = {
      'mask_a': losses.salient(visible, share),
      'mask_b': losses.salient(infrared, share),
      'mask': losses.segment_masks(visible, infrared, (share, 1 - share))[0],
    }
    return {
      'sobel_a': channels_first(losses.gradient_strength(visible)),
      'k': jnp.round((1 - share) * visible[0].size)[None],
      **{name: channels_first(mask).astype(vi.dtype) for name, mask in masks.items()},
    }

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('atfuse', 'loss_gradmask_unused')
def masked_intensity_adapter(manifest: Manifest) -> adapters.Adapter:
  """A loss that the original has and does not train with."""
  del manifest

  def run(a: jax.Array, b: jax.Array, f: jax.Array, ma: jax.Array, mb: jax.Array) -> Arrays:
    return {'loss': losses.masked_intensity_loss(*map(channels_last, (f, a, b, ma, mb)))}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('atfuse', 'metrics_suite')
def metrics_adapter(manifest: Manifest) -> adapters.Adapter:
  """The metrics of each pair of images."""
  names = [name.removeprefix('out/') for name in manifest['shapes']]

  def run(fused: jax.Array, a: jax.Array, b: jax.Array) -> dict[str, np.ndarray]:
    images = (np.asarray(x)[:, 0] for x in (fused, a, b))
    results = [metrics.fusion_metrics(*pair) for pair in zip(*images, strict=True)]
    return {name: np.array([result[name] for result in results]) for name in names}

  return adapters.function_adapter(run)
