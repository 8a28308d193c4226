"""ATFuse and its PyTorch original, songlei-xiong/ATFuse; its losses, and the fusion metrics."""

from collections.abc import Mapping
from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.attention import information_injection
from crossattn_jax.metrics import image_fusion as metrics
from crossattn_jax.models import atfuse
from crossattn_jax.parity import adapters
from crossattn_jax.parity.mapping import Rule, prefixed
from crossattn_jax.tasks.image_fusion import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# The original's blocks in the order of the forward pass.
_BLOCKS = {'mhca_stage': 'discrepancy', 'mhca_stage1_2': 'common_0', 'mhca_stage2': 'common_1'}
# Their index in the original's lists of stems and patch embeddings.
_IMAGES = ('infrared', 'visible')


def _nhwc(image: jax.Array) -> jax.Array:
  return rearrange(image, 'b c h w -> b h w c')


def _nchw(image: jax.Array) -> jax.Array:
  return rearrange(image, 'b h w c -> b c h w')


def _first(result: tuple[jax.Array, jax.Array]) -> jax.Array:
  return _nchw(result[0])


# The correspondence of names, from the inside out.


def _affine(torch: str, flax: str, layout: str, bias_layout: str = 'identity') -> list[Rule]:
  return [
    Rule(f'{torch}.weight', f'{flax}/kernel', layout),
    Rule(f'{torch}.bias', f'{flax}/bias', bias_layout),
  ]


def _norm(torch: str) -> list[Rule]:
  return [
    Rule(f'{torch}.weight', 'norm/scale'),
    Rule(f'{torch}.bias', 'norm/bias'),
    Rule(f'{torch}.running_mean', 'norm/mean', collection='batch_stats'),
    Rule(f'{torch}.running_var', 'norm/var', collection='batch_stats'),
    Rule(f'{torch}.num_batches_tracked', None),
  ]


def stem_rules() -> list[Rule]:
  """The rules of a stem."""
  return [Rule('conv.weight', 'conv/kernel', 'conv'), *_norm('bn')]


def patch_embedding_rules() -> list[Rule]:
  """The rules of a patch embedding."""
  return [
    Rule('dwconv.weight', 'depthwise/kernel', 'conv'),
    Rule('pwconv.weight', 'pointwise/kernel', 'pointwise_conv'),
    *_norm('bn'),
  ]


def attention_rules() -> list[Rule]:
  """The rules of an attention."""
  rules = _affine('proj', 'out', 'linear_heads_in')
  for torch, flax in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    rules += _affine(torch, flax, 'linear_heads_out', 'linear_heads_out')
  return rules


def injection_rules() -> list[Rule]:
  """The rules of an injection."""
  return [
    *prefixed(attention_rules(), 'factoratt_crpe.', 'attention/'),
    *_affine('mlp.fc{i:1|2}', 'mlp/fc{i}', 'linear'),
    Rule('norm2.weight', 'norm/scale'),
    Rule('norm2.bias', 'norm/bias'),
  ]


def upsampling_rules() -> list[Rule]:
  """The rules of the decoder's upsampling, with a sum or with a concatenation."""
  return [
    *_affine('conv11_headSum', 'join', 'conv'),
    *_affine('conv12', 'expand', 'conv'),
    *_affine('conv11_tail', 'refine', 'conv'),
  ]


def residual_head_rules() -> list[Rule]:
  """The rules of a residual head."""
  return _affine('conv{i:1|2}', 'conv{i}', 'conv')


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
    decoder = _affine('conv11_head', 'join', 'conv') + decoder[2:]
  rules += prefixed(decoder, 'up_scale1_aggregate.', 'decoder/')
  rules += prefixed(residual_head_rules(), 'head.', 'reconstruction_0/')
  rules += prefixed(residual_head_rules(), 'head_final.', 'reconstruction_1/')
  for key in module.unused_shapes():
    rules.append(Rule(key, key if module.unused_parameters else None, collection='unused'))
  return [*rules, Rule('{any:.*}.num_batches_tracked', None)]


def model_taps() -> dict[str, adapters.TapLike | None]:
  """The taps of a whole model."""
  taps: dict[str, adapters.TapLike | None] = {
    'up_scale1_aggregate': ('decoder', _nchw),
    'head': ('reconstruction_0', _nchw),
    'head_final': ('reconstruction_1', _nchw),
  }
  for i, name in enumerate(_IMAGES):
    taps[f'stem1.{i}'] = (f'stem_{name}', _nchw)
    taps[f'patch_embed_stages1.patch_embeds.{i}'] = (f'patch_embedding_{name}', _nchw)
  return taps | {torch: (flax, _first) for torch, flax in _BLOCKS.items()}


@adapters.register_models('atfuse', 'atfuse*')
def describe(module: atfuse.ATFuse) -> adapters.ModelParity:
  """Says how a registered ATFuse corresponds to the official model."""
  image = jax.ShapeDtypeStruct((1, 1, *module.image_size), jnp.float32)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    fused, features = model(_nhwc(inputs['vi']), _nhwc(inputs['ir']))
    return {
      'pred': _nchw(fused),
      'k': _nchw(features['visible']),
      'v': _nchw(features['infrared']),
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


def _mutable(manifest: Manifest) -> tuple[str, ...]:
  return ('batch_stats',) if manifest['mode'] == 'train' else ()


@adapters.register_adapter('atfuse', 'ATFuse')
def model_adapter(manifest: Manifest) -> adapters.Adapter:
  """A whole model."""
  module = _model(manifest)
  outputs = [name.removeprefix('out/') for name in manifest['shapes'] if name.startswith('out/')]

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    train = manifest['mode'] == 'train'
    fused, features = model(_nhwc(inputs['vi']), _nhwc(inputs['ir']), train)
    found = {'pred': fused, 'k': features['visible'], 'v': features['infrared']}
    return {name: _nchw(found[name]) for name in outputs}

  return adapters.module_adapter(
    manifest,
    module,
    rules=model_rules(module),
    call=call,
    taps=model_taps(),
    mutable=_mutable(manifest),
  )


@adapters.register_adapter('atfuse', 'ATFuse+loss')
def training_adapter(manifest: Manifest) -> adapters.Adapter:
  """A whole model in training mode and its loss."""
  module = _model(manifest)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    visible, infrared = _nhwc(inputs['vi']), _nhwc(inputs['ir'])
    fused, _ = model(visible, infrared, train=True)
    loss = losses.fusion_loss(fused, visible, infrared)
    return {'pred': _nchw(fused), 'loss': loss.total.mean()}

  return adapters.module_adapter(
    manifest,
    module,
    rules=prefixed(model_rules(module), 'net.'),
    call=call,
    mutable=_mutable(manifest),
  )


# Parts of a model.


def _map_adapter(manifest: Manifest, module: nn.Module, rules: list[Rule]) -> adapters.Adapter:
  train = manifest['mode'] == 'train'
  return adapters.module_adapter(
    manifest,
    module,
    rules=rules,
    call=lambda bound, inputs: {'out': _nchw(bound(_nhwc(inputs['x']), train))},
    mutable=_mutable(manifest),
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
    call=lambda head, inputs: {'out': _nchw(head(_nhwc(inputs['x'])))},
  )


@adapters.register_adapter('atfuse', 'upscale')
def upsampling_adapter(manifest: Manifest) -> adapters.Adapter:
  """The decoder's upsampling."""
  feature_sum = manifest['constructor']['is_feature_sum']
  rules = upsampling_rules()
  if not feature_sum:
    rules = _affine('conv11_head', 'join', 'conv') + rules[2:]
  return adapters.module_adapter(
    manifest,
    atfuse.Upsampling(feature_sum),
    rules=rules,
    call=lambda module, inputs: {'out': _nchw(module(_nhwc(inputs['x']), _nhwc(inputs['skip'])))},
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
      'out': _nchw(module(*(_nhwc(inputs[name]) for name in ('q', 'k', 'v'))))
    },
  )


# Losses and metrics.


@adapters.register_adapter('atfuse', 'loss_fusion')
def loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """The loss and its terms."""
  del manifest

  def run(fused: jax.Array, vi: jax.Array, ir: jax.Array) -> Arrays:
    loss = losses.fusion_loss(*map(_nhwc, (fused, vi, ir)))
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
    visible, infrared = _nhwc(vi), _nhwc(ir)
    (share, _), *_ = losses.SEGMENTS
    masks = {
      'mask_a': losses.salient(visible, share),
      'mask_b': losses.salient(infrared, share),
      'mask': losses.segment_masks(visible, infrared, (share, 1 - share))[0],
    }
    return {
      'sobel_a': _nchw(losses.gradient_strength(visible)),
      'k': jnp.round((1 - share) * visible[0].size)[None],
      **{name: _nchw(mask).astype(vi.dtype) for name, mask in masks.items()},
    }

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('atfuse', 'loss_gradmask_unused')
def masked_intensity_adapter(manifest: Manifest) -> adapters.Adapter:
  """A loss that the original has and does not train with."""
  del manifest

  def run(a: jax.Array, b: jax.Array, f: jax.Array, ma: jax.Array, mb: jax.Array) -> Arrays:
    return {'loss': losses.masked_intensity_loss(*map(_nhwc, (f, a, b, ma, mb)))}

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
