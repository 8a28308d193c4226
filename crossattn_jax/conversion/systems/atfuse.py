"""ATFuse beside its PyTorch original: songlei-xiong/ATFuse."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.conversion import correspondence
from crossattn_jax.conversion.layouts import channels_first, channels_last, first_map
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, batch_norm, norm
from crossattn_jax.models import atfuse

Arrays = dict[str, jax.Array]

# The original's blocks in the order of the forward pass.
_BLOCKS = {'mhca_stage': 'discrepancy', 'mhca_stage1_2': 'common_0', 'mhca_stage2': 'common_1'}
# Their index in the original's lists of stems and patch embeddings.
_IMAGES = ('infrared', 'visible')


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
    *norm('norm2', 'norm'),
  ]


def upsampling_rules(feature_sum: bool) -> list[Rule]:
  """The rules of the decoder's upsampling, with a sum or with a concatenation."""
  return [
    *affine('conv11_headSum' if feature_sum else 'conv11_head', 'join', 'conv'),
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
  decoder = upsampling_rules(module.feature_sum)
  rules += prefixed(decoder, 'up_scale1_aggregate.', 'decoder/')
  rules += prefixed(residual_head_rules(), 'head.', 'reconstruction_0/')
  rules += prefixed(residual_head_rules(), 'head_final.', 'reconstruction_1/')
  for key in module.unused_shapes():
    rules.append(Rule(key, key if module.unused_parameters else None, collection='unused'))
  return [*rules, Rule('{any:.*}.num_batches_tracked', None)]


def model_taps() -> dict[str, correspondence.TapLike | None]:
  """The taps of a whole model."""
  taps: dict[str, correspondence.TapLike | None] = {
    'up_scale1_aggregate': ('decoder', channels_first),
    'head': ('reconstruction_0', channels_first),
    'head_final': ('reconstruction_1', channels_first),
  }
  for i, name in enumerate(_IMAGES):
    taps[f'stem1.{i}'] = (f'stem_{name}', channels_first)
    taps[f'patch_embed_stages1.patch_embeds.{i}'] = (f'patch_embedding_{name}', channels_first)
  return taps | {torch: (flax, first_map) for torch, flax in _BLOCKS.items()}


@correspondence.register_models('atfuse', 'atfuse*')
def describe(module: atfuse.ATFuse) -> correspondence.Correspondence:
  """Says how a registered ATFuse corresponds to the official model."""
  image = jax.ShapeDtypeStruct((1, 1, *module.image_size), jnp.float32)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    fused, features = model(channels_last(inputs['vi']), channels_last(inputs['ir']))
    return {
      'pred': channels_first(fused),
      'k': channels_first(features['visible']),
      'v': channels_first(features['infrared']),
    }

  return correspondence.Correspondence(
    rules=model_rules(module),
    call=call,
    inputs={'vi': image, 'ir': image},
    taps=model_taps(),
    fields=lambda shapes: {'feature_sum': 'up_scale1_aggregate.conv11_headSum.weight' in shapes},
  )
