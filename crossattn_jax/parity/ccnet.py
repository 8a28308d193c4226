"""CCNet and its PyTorch original: speedinghzl/CCNet. So far its attention."""

from collections.abc import Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import criss_cross
from crossattn_jax.kernels.criss_cross import api, reference
from crossattn_jax.parity import adapters
from crossattn_jax.parity import mapping as mapping_lib
from crossattn_jax.parity.mapping import Rule

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


def _channels_last(x: jax.Array) -> jax.Array:
  return jnp.moveaxis(x, 1, -1)


def _channels_first(x: jax.Array) -> jax.Array:
  return jnp.moveaxis(x, -1, 1)


@functools.cache
def _pointwise(rank: int) -> mapping_lib.Layout:
  """The layout of a linear map that the original keeps as a convolution of `rank` axes."""
  ones = (1,) * rank
  return mapping_lib.Layout(
    f'pointwise convolution of {rank} axes',
    lambda shape: shape if len(shape) == 1 else (*shape[::-1], *ones),
    lambda x, shape: x.reshape(shape[::-1]).T,
    lambda x, shape: x.T.reshape(shape),
  )


def criss_cross_rules(rank: int) -> list[Rule]:
  """The rules of `CrissCrossAttention` on maps of `rank` axes, inside the original's module."""
  layout = _pointwise(rank)
  return [
    Rule('gamma', 'gate', 'unbatched'),
    Rule('{map:query|key|value}_conv.weight', '{map}/kernel', layout),
    Rule('{map:query|key|value}_conv.bias', '{map}/bias', layout),
  ]


def attention_adapter(
  manifest: Manifest, implementation: str = 'auto', interpret: bool = False
) -> adapters.Adapter:
  """The attention alone, by one of its implementations."""

  def run(q: jax.Array, k: jax.Array, v: jax.Array) -> Arrays:
    q, k, v = (_channels_last(x) for x in (q, k, v))
    out = api.attention(q, k, v, implementation, interpret=interpret)
    scores = reference.criss_cross_scores(q, k)
    return {
      'out': _channels_first(out),
      'lse': nn.logsumexp(scores, axis=-1),
      'attention': nn.softmax(scores),
    }

  recorded = {name.removeprefix('out/') for name in manifest['shapes'] if name.startswith('out/')}
  return adapters.function_adapter(
    lambda **inputs: {name: x for name, x in run(**inputs).items() if name in recorded},
    without_gradient=recorded - {'out'},
    jit=True,
  )


@adapters.register_adapter('ccnet', 'criss_cross_attention')
def _criss_cross_attention(manifest: Manifest) -> adapters.Adapter:
  return attention_adapter(manifest)


def _module(manifest: Manifest, rank: int) -> adapters.Adapter:
  c = manifest['constructor']

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    x, outputs = _channels_last(inputs['x']), {}
    for r in range(c['recurrence']):
      x = module(x)
      outputs[f'r{r + 1}'] = _channels_first(x)
    return outputs

  return adapters.module_adapter(
    manifest,
    # Once at a time: the case recorded the map after each.
    criss_cross.CrissCrossAttention(recurrence=1, reduction=c['in_dim'] // c['key_dim']),
    rules=mapping_lib.prefixed(criss_cross_rules(rank), 'cca.', ''),
    call=call,
  )


@adapters.register_adapter('ccnet', 'CrissCrossAttention')
def _criss_cross_module(manifest: Manifest) -> adapters.Adapter:
  return _module(manifest, rank=2)


@adapters.register_adapter('ccnet', 'CrissCrossAttention3D')
def _criss_cross_module_3d(manifest: Manifest) -> adapters.Adapter:
  return _module(manifest, rank=3)
