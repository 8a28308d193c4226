"""Cases of ATFuse: whole models, their parts, losses, and the metrics of fusion."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.attention import information_injection
from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.systems import atfuse as rules
from crossattn_jax.metrics import image_fusion as metrics
from crossattn_jax.models import atfuse
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.tasks.image_fusion import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


# Whole models.


def _model(c: arguments.Arguments) -> atfuse.ATFuse:
  """The model of an official constructor, with all that it creates."""
  c.ignore('num_stage', 'scale', 'n_feats', 'linear_dim', 'img_size')
  c.ignore('in_channels', 'out_channels', only=(1,))
  c.ignore('use_aggregate', 'qkv_bias', only=(True,))
  # Of the others only the second counts, which is of the decoder: it must be the first.
  width, *others = c.get('embed_dims', (64, 64))
  if others[:1] not in ([], [width]):
    raise arguments.ArgumentError(f'embed_dims is {[width, *others]}; the first two are equal')
  paths = list(c.get('num_paths', (4, 1)))[:2]
  if paths != [4, 1]:
    raise arguments.ArgumentError(f'num_paths begins with {paths}; its adapter replays 4, 1')
  return atfuse.ATFuse(
    width=width,
    num_heads=c.get('num_heads', 4),
    mlp_ratio=c.get('mlp_ratio', 3),
    feature_sum=c.get('feature_sum', True),
    unused_parameters=True,
  )


def _model_adapter(manifest: Manifest, loss: bool, prefix: str = '') -> adapters.Adapter:
  """The adapter of a model whose keys have a prefix, with its loss on request."""
  c, train = manifest['constructor'], manifest['mode'] == 'train'
  module = _model(c)
  loss_options = _loss_options(c) if loss else {}
  # Which of the two arguments is the query: with 'ir' they swap their roles.
  images = {'vi': ('vi', 'ir'), 'ir': ('ir', 'vi')}
  query = c.get('q', 'vi')
  if query not in images:
    raise arguments.ArgumentError(f'q is {query!r}, neither vi nor ir')

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    visible, infrared = (channels_last(inputs[name]) for name in images[query])
    fused, features = model(visible, infrared, train)
    outputs = {'pred': fused, 'k': features['visible'], 'v': features['infrared']}
    outputs = {name: channels_first(x) for name, x in outputs.items()}
    if loss:
      outputs['loss'] = losses.fusion_loss(fused, visible, infrared, **loss_options).total.mean()
    return outputs

  return adapters.module_adapter(
    manifest,
    module,
    rules=prefixed(rules.model_rules(module), prefix),
    call=call,
    taps={f'{prefix}{name}': tap for name, tap in rules.model_taps().items()},
  )


@adapters.register_adapter('atfuse', 'ATFuse')
def _whole_model(manifest: Manifest) -> adapters.Adapter:
  return _model_adapter(manifest, loss=False)


@adapters.register_adapter('atfuse', 'ATFuse+loss')
def _model_and_loss(manifest: Manifest) -> adapters.Adapter:
  return _model_adapter(manifest, loss=True, prefix='net.')


# Parts of a model.


def _map_adapter(
  manifest: Manifest, module: nn.Module, module_rules: list[Rule], *names: str
) -> adapters.Adapter:
  """The adapter of a module that maps the inputs `names` to one map."""
  return adapters.module_adapter(
    manifest,
    module,
    rules=module_rules,
    call=lambda bound, inputs: {
      'out': channels_first(bound(*(channels_last(inputs[name]) for name in names)))
    },
  )


def _normed_adapter(
  manifest: Manifest, module: nn.Module, module_rules: list[Rule]
) -> adapters.Adapter:
  """The adapter of a module with a batch norm; its widths are those of the state."""
  c, train = manifest['constructor'], manifest['mode'] == 'train'
  c.ignore('in_ch', 'out_ch', 'in_channels', 'out_channels')
  c.ignore('kernel_size', only=(3,))
  return adapters.module_adapter(
    manifest,
    module,
    rules=module_rules,
    call=lambda bound, inputs: {'out': channels_first(bound(channels_last(inputs['x']), train))},
  )


@adapters.register_adapter('atfuse', 'conv_bn_stem')
def _stem(manifest: Manifest) -> adapters.Adapter:
  manifest['constructor'].ignore('stride', only=(2,))
  width = next(e['shape'][0] for e in manifest['state'] if e['key'] == 'conv.weight')
  return _normed_adapter(manifest, atfuse.Stem(width), rules.stem_rules())


@adapters.register_adapter('atfuse', 'dwconv_bn')
def _patch_embedding(manifest: Manifest) -> adapters.Adapter:
  manifest['constructor'].ignore('stride', only=(1,))
  return _normed_adapter(manifest, atfuse.PatchEmbedding(), rules.patch_embedding_rules())


@adapters.register_adapter('atfuse', 'res_block')
def _residual_head(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('in_channels', only=(manifest['inputs']['x']['shape'][1],))
  module = atfuse.ResidualHead(c['out_channels'])
  return _map_adapter(manifest, module, rules.residual_head_rules(), 'x')


@adapters.register_adapter('atfuse', 'upscale')
def _upsampling(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('embed_dim', only=(manifest['inputs']['x']['shape'][1],))
  feature_sum = c.get('is_feature_sum', True)
  module = atfuse.Upsampling(feature_sum)
  return _map_adapter(manifest, module, rules.upsampling_rules(feature_sum), 'x', 'skip')


def _injection(c: arguments.Arguments) -> str:
  c.ignore('qk_scale')  # Scores are not scaled.
  c.ignore_rates('attn_drop', 'proj_drop', 'drop', 'drop_path', 'drop_path_rate')
  return 'common' if c['minus'] else 'discrepancy'


@adapters.register_adapter('atfuse', 'factor_att')
def _attention(manifest: Manifest) -> adapters.Adapter:
  """The attention on tokens."""
  c = manifest['constructor']
  c.ignore('dim', only=(manifest['inputs']['q']['shape'][2],))
  return adapters.module_adapter(
    manifest,
    information_injection.InjectionAttention(
      c.get('num_heads', 4), _injection(c), qkv_bias=c.get('qkv_bias', True)
    ),
    rules=rules.attention_rules(),
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
def _block(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('dim', only=(manifest['inputs']['q']['shape'][1],))
  c.ignore('qkv_bias', only=(True,))
  block = information_injection.InformationInjection(
    c.get('num_heads', 4), c.get('mlp_ratio', 3), _injection(c)
  )
  unused = [Rule(f'fuse.{name}', name, collection='unused') for name in ('weight', 'bias')]
  module_rules = [*prefixed(rules.injection_rules(), flax='block/'), *unused]
  return _map_adapter(manifest, _WithUnused(block), module_rules, 'q', 'k', 'v')


# Losses and metrics.


def _share(c: arguments.Arguments) -> float:
  """How many of the pixels are salient."""
  return c.get('share', losses.SEGMENTS[0][0])


def _loss_options(c: arguments.Arguments) -> dict[str, Any]:
  share, (_, salient), (_, rest) = _share(c), *losses.SEGMENTS
  return {
    'segments': ((share, salient), (1 - share, rest)),
    'gradient_weight': c.get('gradient_weight', 20.0),
    'intensity_weight': c.get('intensity_weight', 20.0),
  }


@adapters.register_adapter('atfuse', 'loss_fusion')
def _loss(manifest: Manifest) -> adapters.Adapter:
  """The loss and its terms."""
  options = _loss_options(manifest['constructor'])

  def run(fused: jax.Array, vi: jax.Array, ir: jax.Array) -> Arrays:
    loss = losses.fusion_loss(*map(channels_last, (fused, vi, ir)), **options)
    return {
      'total': loss.total.mean(),
      'gradient': loss.gradient.mean(),
      'intensity': loss.intensity.mean(),
    }

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('atfuse', 'loss_segment_mask')
def _segments(manifest: Manifest) -> adapters.Adapter:
  """The segments of the loss. Masks are numbers in the original; k is the threshold's rank."""
  share = _share(manifest['constructor'])

  def run(vi: jax.Array, ir: jax.Array) -> Arrays:
    visible, infrared = channels_last(vi), channels_last(ir)
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
def _masked_intensity_loss(manifest: Manifest) -> adapters.Adapter:
  """A loss that the original has and does not train with."""
  del manifest

  def run(a: jax.Array, b: jax.Array, f: jax.Array, ma: jax.Array, mb: jax.Array) -> Arrays:
    return {'loss': losses.masked_intensity_loss(*map(channels_last, (f, a, b, ma, mb)))}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('atfuse', 'metrics_suite')
def _metrics(manifest: Manifest) -> adapters.Adapter:
  """The metrics of each pair of images."""
  names = [name.removeprefix('out/') for name in manifest['shapes']]

  def run(fused: jax.Array, a: jax.Array, b: jax.Array) -> dict[str, np.ndarray]:
    images = (np.asarray(x)[:, 0] for x in (fused, a, b))
    results = [metrics.fusion_metrics(*pair) for pair in zip(*images, strict=True)]
    return {name: np.array([result[name] for result in results]) for name in names}

  return adapters.function_adapter(run)
