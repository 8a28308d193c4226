"""Attention within groups for TPUs: strips of the map attend, with other groups hidden.

A strip holds all tokens of the rows that groups share. That scores several times as many pairs as
there are, and spares a TPU the sorting into groups, which takes longer.
"""

import functools

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import parallel
from crossattn_jax.kernels.biased import api as biased
from crossattn_jax.kernels.grouped.grouping import Grouping


def grouped_attention(query, key, value, bias, *, grouping, num_heads, scale, interpret=False):
  """See `kernels.grouped_attention`, of padded maps; under a mesh by image and head."""
  names = ('batch', None, None, ('heads', num_heads))
  return parallel.map_shards(
    functools.partial(_attend, grouping=grouping, scale=scale, interpret=interpret),
    query,
    key,
    value,
    bias,
    names=(names, names, names, ('heads', None, None)),
    out_names=names,
  )


def strip_tokens(grouping: Grouping) -> int:
  """How many tokens a strip has."""
  return grouping.group[0] * grouping.padded_size[1]


def _attend(query, key, value, bias, *, grouping, scale, interpret):
  key_mask = None
  if grouping.pads:
    # Not part of the bias: which rows of a strip are padding differs from strip to strip.
    real = grouping.pad(jnp.ones((1, *grouping.size), bool))
    key_mask = _cut(jnp.broadcast_to(real, query.shape[:3]), grouping)
  out = biased.biased_attention(
    *(_cut(x, grouping) for x in (query, key, value)),
    _strip_bias(bias, grouping),
    num_heads=len(bias),
    scale=scale,
    key_mask=key_mask,
    implementation='tpu',
    interpret=interpret,
  )
  return rearrange(out, '(b r i) (g w) c -> b (r g i) w c', **_row_lengths(grouping))


def _cut(x: jax.Array, grouping: Grouping) -> jax.Array:
  """Cuts `[batch, height, width, ...]` into `[strips, tokens, ...]`."""
  return rearrange(x, 'b (r g i) w ... -> (b r i) (g w) ...', **_row_lengths(grouping))


def _row_lengths(grouping: Grouping) -> dict[str, int]:
  return {name: grouping.lengths[name] for name in 'rgi'}


def _strip_bias(bias: jax.Array, grouping: Grouping) -> jax.Array:
  """The bias between the tokens of a strip, `[heads, tokens, tokens]`; it hides other groups."""
  group, place = _groups_of_a_strip(grouping)
  # Products: a TPU gathers, and adds up the gradient, one element at a time.
  spread = jax.nn.one_hot(place, bias.shape[-1], dtype=bias.dtype)
  bias = jnp.einsum('qa,nab,kb->nqk', spread, bias, spread, precision='highest')
  return jnp.where(group[:, None] == group, bias, biased.HIDDEN)


def _groups_of_a_strip(grouping: Grouping) -> tuple[np.ndarray, np.ndarray]:
  """Of each token of a strip the group, counted within the strip, and the place in it."""
  column = np.arange(grouping.padded_size[1])
  (g, h), j = grouping.group, grouping.interval[1]
  group = column // (h * j) * j + column % j
  place = np.arange(g)[:, None] * h + column // j % h
  return np.tile(group, g), place.reshape(-1)
