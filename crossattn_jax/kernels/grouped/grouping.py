"""How a map is cut into groups of tokens."""

import dataclasses

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Grouping:
  """Groups of `group[0] * group[1]` tokens; rows first in each pair.

  With padding the map has `regions * group * interval` rows. Tokens of a group lie `interval` rows
  apart within one of the regions, which hold `interval[0] * interval[1]` groups each.

  Attributes:
    size: of the map.
    group: tokens on each side of a group.
    interval: between neighbours in a group; 1 makes windows.
    padding: rows before and after the map, columns before and after it.
  """

  size: Pair
  group: Pair
  interval: Pair = (1, 1)
  padding: tuple[Pair, Pair] = ((0, 0), (0, 0))

  @property
  def padded_size(self) -> Pair:
    """Rows and columns of the padded map."""
    return tuple(length + sum(pad) for length, pad in zip(self.size, self.padding, strict=True))

  @property
  def pads(self) -> bool:
    """Whether there is any padding."""
    return self.padded_size != self.size

  @property
  def lengths(self) -> dict[str, int]:
    """Of the axes in `split`: regions `r` and `s`, tokens `g` and `h`, intervals `i` and `j`."""
    (rows, columns), (g, h), (i, j) = self.padded_size, self.group, self.interval
    return {'r': rows // (g * i), 's': columns // (h * j), 'g': g, 'h': h, 'i': i, 'j': j}

  def pad(self, x: jax.Array) -> jax.Array:
    """Puts zeros around a map `[batch, height, width, ...]`."""
    return jnp.pad(x, ((0, 0), *self.padding, *((0, 0),) * (x.ndim - 3))) if self.pads else x

  def crop(self, x: jax.Array) -> jax.Array:
    """The inverse of `pad`."""
    (top, _), (left, _) = self.padding
    return x[:, top : top + self.size[0], left : left + self.size[1]]

  def split(self, x: jax.Array) -> jax.Array:
    """Sorts a padded map `[batch, height, width, ...]` into `[batch, groups, tokens, ...]`."""
    return rearrange(x, 'b (r g i) (s h j) ... -> b (r s i j) (g h) ...', **self.lengths)

  def merge(self, groups: jax.Array) -> jax.Array:
    """The inverse of `split`."""
    return rearrange(groups, 'b (r s i j) (g h) ... -> b (r g i) (s h j) ...', **self.lengths)

  def real_tokens(self) -> np.ndarray | None:
    """Which tokens are none of padding, bool `[groups, tokens]`; None where nothing is padded."""
    if not self.pads:
      return None
    return self.split(np.pad(np.ones((1, *self.size), bool), ((0, 0), *self.padding)))[0]
