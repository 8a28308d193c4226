"""Attention mechanisms from map to map, by name: what a model needs to swap one for another.

Each name stands for a mechanism with the settings of its paper for a place in a pyramid of four
stages. `register` adds others.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax

from crossattn_jax import config_errors
from crossattn_jax.attention import (
  bi_level_routing,
  block_grid_attention,
  criss_cross,
  efficient_additive,
  global_attention,
  long_short_distance,
  pooled,
)
from crossattn_jax.layers import module


@dataclasses.dataclass(frozen=True)
class Place:
  """Where in a network an attention stands.

  Attributes:
    stage: from 0, at strides 4, 8, 16, 32.
    block: of the stage, from 0.
    size: height and width of the map.
    num_heads: that the width of the map is cut into.
  """

  stage: int
  block: int
  size: tuple[int, int]
  num_heads: int


Builder = Callable[[Place], tuple[type[nn.Module], Mapping[str, Any]]]

_builders: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
  """Decorates a function from a place to a module class and the fields that suit the place.

  The module maps `[batch, height, width, channels]` to the same shape, or to a sequence that starts
  with it. It has the fields 'dtype' and 'param_dtype'.

  Raises:
    ValueError: the name is taken.
  """

  def add(builder: Builder) -> Builder:
    if name in _builders:
      raise ValueError(f'attention {name!r} is already registered')
    _builders[name] = builder
    return builder

  return add


def list_attentions() -> list[str]:
  """Returns the registered names, sorted.

  Examples:
    >>> 'criss_cross' in list_attentions(), 'pooled' in list_attentions()
    (True, True)
  """
  return sorted(_builders)


class MapAttention(module.Module):
  """A registered attention.

  Attributes:
    kind: its name; see `list_attentions`.
    stage: of the pyramid it stands in, from 0, at strides 4, 8, 16, 32.
    block: of the stage, from 0.
    num_heads: that the width of the map is cut into.

  Examples:
    >>> attention = MapAttention('pooled', stage=0, block=0, num_heads=2)
    >>> x = jnp.ones((1, 16, 16, 64))
    >>> jax.eval_shape(attention.init_with_output, jax.random.key(0), x)[0].shape
    (1, 16, 16, 64)
  """

  kind: str
  stage: int
  block: int
  num_heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape.

    Raises:
      ValueError: unknown name.
    """
    place = Place(self.stage, self.block, x.shape[1:3], self.num_heads)
    attention, fields = find_builder(self.kind)(place)
    out = attention(**self.types, name=self.kind, **fields)(x)
    return out if isinstance(out, jax.Array) else out[0]


def find_builder(kind: str) -> Builder:
  """Returns what is registered under a name.

  Raises:
    ValueError: nothing is.
  """
  if kind not in _builders:
    hint = config_errors.near_names(kind, _builders)
    raise ValueError(f'unknown attention {kind!r}; {hint}known: {", ".join(list_attentions())}')
  return _builders[kind]


class CrissCrossChange(module.Module):
  """What recurrent criss-cross attention adds to its input.

  Attributes:
    recurrence: how often the same parameters are applied.
    reduction: channels of the value per channel of query and key.
    implementation: see `kernels.criss_cross_attention`.
  """

  recurrence: int = 2
  reduction: int = 8
  implementation: str = 'auto'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    attention = criss_cross.CrissCrossAttention(
      self.recurrence, self.reduction, self.implementation, name='attention', **self.types
    )
    return attention(x) - x


@register('criss_cross')
def _criss_cross(place: Place):
  """Rows and columns, twice (CCNet)."""
  del place
  return CrissCrossChange, {}


@register('bi_level_routing')
def _bi_level_routing(place: Place):
  """7 x 7 regions that choose among each other (BiFormer); fewer regions on small maps."""
  side = min(7, *place.size)
  return bi_level_routing.BiLevelRoutingAttention, {
    'num_heads': place.num_heads,
    'regions_per_side': side,
    'top_k': min((1, 4, 16, 49)[min(place.stage, 3)], _visible_regions(place.size, side)),
    'padding': 'masked',
  }


def _visible_regions(size: tuple[int, int], side: int) -> int:
  """Regions that are not padding entirely."""
  _, region_size = bi_level_routing.region_grid(size, side, 'masked')
  return math.prod(-(-length // part) for length, part in zip(size, region_size, strict=True))


@register('efficient_additive')
def _efficient_additive(place: Place):
  """One global query (SwiftFormer)."""
  del place
  return efficient_additive.EfficientAdditiveAttention, {}


@register('long_short_distance')
def _long_short_distance(place: Place):
  """Windows and spread-out groups in turn (CrossFormer)."""
  return long_short_distance.LongShortDistanceAttention, {
    'num_heads': place.num_heads,
    'kind': 'long' if place.block % 2 else 'short',
    'adaptive_interval': True,
  }


@register('pooled')
def _pooled(place: Place):
  """Keys and values of a pooled map, as many in every stage (MViT, MMViT)."""
  return pooled.PooledAttention, {
    'num_heads': place.num_heads,
    'stride': (8, 4, 2, 1)[min(place.stage, 3)],
  }


@register('block_grid')
def _block_grid(place: Place):
  """Windows and grids in turn (MaxViT)."""
  return block_grid_attention.BlockGridAttention, {
    'num_heads': place.num_heads,
    'kind': 'grid' if place.block % 2 else 'block',
    'window': min(7, *place.size),
  }


@register('global')
def _global(place: Place):
  """Every position with every other: the cost that the others avoid."""
  return global_attention.GlobalAttention, {'num_heads': place.num_heads}
