"""Cases of deformable attention."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import kernels
from crossattn_jax.attention import deformable
from crossattn_jax.conversion.systems import sketch_localizer as rules
from crossattn_jax.parity import adapters

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


@adapters.register_adapter('sketch_localizer', 'deform_attn_core')
def _sampling(manifest: Manifest) -> adapters.Adapter:
  sizes = manifest['constructor']['spatial_shapes_hw']

  def run(value: jax.Array, sampling_locations: jax.Array, attention_weights: jax.Array) -> Arrays:
    out = kernels.deformable_sampling(value, sampling_locations, attention_weights, sizes)
    return {'output': out.reshape(*out.shape[:2], -1)}

  return adapters.function_adapter(run, jit=True)


def of_all_levels(points: jax.Array, levels: int) -> jax.Array:
  """References `[batch, queries, n]`, the same for every level: `[batch, queries, levels, n]`."""
  return jnp.repeat(points[:, :, None], levels, axis=2)


@adapters.register_adapter('sketch_localizer', 'deform_attn_module')
def _attention(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  sizes = c['spatial_shapes_hw']
  c.ignore('n_levels', only=(len(sizes),))
  c.ignore('d_model', only=(manifest['inputs']['query']['shape'][-1],))

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    reference = of_all_levels(nn.sigmoid(inputs['reference_raw']), len(sizes))
    padding = inputs.get('padding_mask')
    return {'output': module(inputs['query'], reference, inputs['memory'], sizes, padding)}

  return adapters.module_adapter(
    manifest,
    deformable.DeformableAttention(c['n_heads'], c['n_points']),
    rules=rules.DEFORMABLE_ATTENTION,
    call=call,
  )
