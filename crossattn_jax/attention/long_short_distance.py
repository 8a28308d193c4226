"""Long and short distance attention: in windows of neighbours, and among tokens spread evenly.

Source: CrossFormer, Wang et al. 2022 (arXiv 2108.00154), section 3.2, and its official code. A map
is cut into groups, and attention stays within each of them (`kernels.grouped_attention`): in short
distance attention a group is a window, in long distance attention its tokens are `interval` rows
and columns apart. Scores get a dynamic position bias, so that groups may have any size.
"""

import math
from typing import Literal

from flax import linen as nn
import jax

from crossattn_jax import kernels, parallel
from crossattn_jax.attention import dynamic_position_bias
from crossattn_jax.kernels.grouped import reference
from crossattn_jax.layers import initializers, linear, module

Pair = tuple[int, int]

KINDS = ('short', 'long')
LONG_DISTANCES = ('region', 'global')
SMALL_MAPS = ('shrink', 'pad')


def find_grouping(
  size: Pair,
  kind: Literal['short', 'long'],
  group_size: int,
  interval: int = 1,
  *,
  lda: Literal['region', 'global'] = 'region',
  small_map: Literal['shrink', 'pad'] = 'shrink',
  adaptive_interval: bool = False,
  center_padding: bool = False,
) -> kernels.Grouping:
  """Decides how a map of a given size is cut (section 3.2).

  A map that is not larger than a group, in one direction at least, has short distance attention
  whatever the kind.

  Args:
    size: of the map.
    kind: 'short' or 'long'.
    group_size: tokens on a side of a group.
    interval: of long distance attention.
    lda: how far long distance attention goes. 'region': groups of `group_size`, spread over regions
      of `group_size * interval`, as the classifiers and the latest dense predictors have them.
      'global': `interval * interval` groups, however many tokens that makes, as the published dense
      predictors have them.
    small_map: of a map that is not larger than a group. 'shrink': windows as large as its shorter
      side (classifiers). 'pad': one group as large as its longer side (dense predictors with
      `lda='region'`).
    adaptive_interval: replaces the interval by the one at which a region covers the map.
    center_padding: whether padding goes to all sides rather than to the bottom and the right.

  Returns:
    The grouping.

  Raises:
    ValueError: an argument is none of the choices, or not positive.
  """
  for name, value, choices in (
    ('kind', kind, KINDS),
    ('lda', lda, LONG_DISTANCES),
    ('small_map', small_map, SMALL_MAPS),
  ):
    if value not in choices:
      raise ValueError(f'{name}={value!r} is not one of {", ".join(choices)}')
  if min(*size, group_size, interval) < 1:
    raise ValueError(f'{size=}, {group_size=} and {interval=} must be positive')
  if min(size) <= group_size:
    kind, group_size = 'short', min(size) if small_map == 'shrink' else max(size)
  if kind == 'short':
    interval = 1
  elif adaptive_interval:
    interval = -(-max(size) // group_size)
  spread = kind == 'long' and lda == 'global'
  multiple = interval if spread else group_size * interval
  padding = []
  for length in size:
    missing = -length % multiple
    before = missing // 2 if center_padding else 0
    padding.append((before, missing - before))
  group = tuple(
    (length + sum(pad)) // interval if spread else group_size
    for length, pad in zip(size, padding, strict=True)
  )
  return kernels.Grouping(tuple(size), group, (interval, interval), tuple(padding))


class LongShortDistanceAttention(module.Module):
  """Attention within the groups of a map of any size (section 3.2; LSDA in the code).

  Attributes:
    num_heads: must divide the channels.
    kind: 'short' or 'long', of distance; `find_grouping` says more on all of these.
    group_size: tokens on a side of a group.
    interval: of long distance attention.
    lda: how far it goes, 'region' or 'global'.
    small_map: what becomes of a map not larger than a group: 'shrink' shrinks the group, 'pad' pads
      the map.
    adaptive_interval: whether the interval is the one at which a region covers the map.
    center_padding: whether padding goes to all sides rather than to the bottom and the right.
    mask_padding: whether padded tokens are hidden; if not, they take part as keys whose projection
      is the bias.
    position_bias: whether scores have a dynamic position bias.
    qkv_bias: whether the projections to query, key and value have biases.
    scale: of the scores, head_dim^-0.5 by default.

  Examples:
    >>> attention = LongShortDistanceAttention(num_heads=2, kind='long', group_size=7, interval=4)
    >>> x = jnp.ones((1, 56, 56, 64))
    >>> jax.eval_shape(attention.init_with_output, jax.random.key(0), x)[0].shape
    (1, 56, 56, 64)
  """

  num_heads: int
  kind: Literal['short', 'long'] = 'short'
  group_size: int = 7
  interval: int = 1
  lda: Literal['region', 'global'] = 'region'
  small_map: Literal['shrink', 'pad'] = 'shrink'
  adaptive_interval: bool = False
  center_padding: bool = False
  mask_padding: bool = True
  position_bias: bool = True
  qkv_bias: bool = True
  scale: float | None = None

  @nn.nowrap
  def grouping(self, size: Pair) -> kernels.Grouping:
    """How a map of this size is cut."""
    return find_grouping(
      tuple(size),
      self.kind,
      self.group_size,
      self.interval,
      lda=self.lda,
      small_map=self.small_map,
      adaptive_interval=self.adaptive_interval,
      center_padding=self.center_padding,
    )

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool = False, with_weights: bool = False
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Maps `[batch, height, width, channels]` to the same shape.

    Args:
      x: the map.
      train: changes nothing; attention has no dropout.
      with_weights: whether to return the weights too.

    Returns:
      The map; with `with_weights` a pair with the mean of all heads' weights, `[batch, groups,
      queries, keys]`, of the groups of `grouping`.
    """
    del train
    common = {'kernel_init': initializers.linear, **self.types}
    channels, heads = x.shape[-1], self.num_heads
    grouping = cut = self.grouping(x.shape[1:3])
    if not self.mask_padding:
      x = grouping.pad(x)
      cut = kernels.Grouping(grouping.padded_size, grouping.group, grouping.interval)
    query, key, value = (
      parallel.constrain(part, 'batch', 'height', 'width', ('heads', heads))
      for part in linear.Projections(3, heads, channels, self.qkv_bias, name='qkv', **common)(x)
    )
    if self.scale is not None:
      query *= self.scale * math.sqrt(channels // heads)
    bias = None
    if self.position_bias:
      # The original divides the width by four twice.
      table = dynamic_position_bias.DynamicPositionBias(
        heads, channels // 4 // 4, param_dtype=self.param_dtype, name='position_bias'
      )(dynamic_position_bias.relative_offsets(grouping.group))
      bias = dynamic_position_bias.relative_position_bias(table)
    out = kernels.grouped_attention(query, key, value, cut, bias, num_heads=heads)
    if not self.mask_padding:
      out = grouping.crop(out)
    out = linear.split_heads(out, heads)
    out = linear.Dense(channels, axis=(-2, -1), name='out', **common)(out)
    if not with_weights:
      return out
    groups = (linear.split_heads(cut.split(cut.pad(x)), heads) for x in (query, key))
    weights = reference.attention_weights(*groups, bias, cut.real_tokens())
    return out, weights.mean(axis=2)
