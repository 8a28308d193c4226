"""Dot-product attention for TPUs: routed attention whose blocks of queries all see one region."""

import functools

import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.kernels.routed import api as routed

# Queries of a block: as many as a TPU's vector registers have lanes.
_QUERIES = 128


def dot_product_attention(query, key, value, scale, interpret=False):
  """See `kernels.dot_product_attention`; under a mesh every device takes some of the queries."""
  heads = ('heads', query.shape[2])
  split = ('batch', 'tokens', heads)
  out = parallel.map_shards(
    functools.partial(_attend, head_dim=query.shape[3], scale=scale, interpret=interpret),
    *(x.reshape(*x.shape[:2], -1) for x in (query, key, value)),
    names=(split, ('batch', None, heads), ('batch', None, heads)),
    out_names=split,
  )
  return out.reshape(*out.shape[:2], *value.shape[2:])


def _attend(query, key, value, *, head_dim, scale, interpret):
  """Attends with `[batch, tokens, channels]`, head by head."""
  batch, tokens, channels = query.shape
  blocks = -(-tokens // _QUERIES)
  padded = jnp.pad(query, ((0, 0), (0, blocks * _QUERIES - tokens), (0, 0)))
  out = routed.attend(
    routed.Form('tpu', interpret),
    padded.reshape(batch, blocks, _QUERIES, channels),
    key[:, None],
    value[:, None],
    jnp.zeros((batch, blocks, 1), jnp.int32),
    None,
    num_heads=channels // head_dim,
    scale=scale,
  )
  return out.reshape(batch, blocks * _QUERIES, -1)[:, :tokens]
