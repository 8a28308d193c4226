"""How torch and Flax lay the same numbers out: of parameters (`LAYOUTS`), and of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]
Array = Any  # numpy or jax


def channels_last(x: jax.Array) -> jax.Array:
  """From the originals' layout, `[batch, channels, ...]`, to this library's."""
  return jnp.moveaxis(x, 1, -1)


def channels_first(x: jax.Array) -> jax.Array:
  """From this library's layout, `[batch, ..., channels]`, to the originals'."""
  return jnp.moveaxis(x, -1, 1)


def as_tokens(x: jax.Array) -> jax.Array:
  """The positions of a map, `[batch, ..., channels]`, in a row: `[batch, positions, channels]`."""
  return x.reshape(x.shape[0], -1, x.shape[-1])


def first_map(result: Any) -> jax.Array:
  """The map that a module returned, alone or first of several, in the original's layout."""
  return channels_first(result[0] if isinstance(result, tuple) else result)


@dataclasses.dataclass(frozen=True)
class Layout:
  """A pair of inverse array maps between a torch tensor and a Flax array.

  Both maps work on numpy and on jax arrays, and only permute and reshape.

  Attributes:
    name: what reports call it.
    torch_shape: Flax shape -> torch shape.
    to_flax: (torch tensor, Flax shape) -> Flax array.
    to_torch: (Flax array, torch shape) -> torch tensor.
  """

  name: str
  torch_shape: Callable[[Shape], Shape]
  to_flax: Callable[[Array, Shape], Array]
  to_torch: Callable[[Array, Shape], Array]


def _product(shape: Iterable[int]) -> int:
  return int(np.prod(tuple(shape), dtype=np.int64))


def _reshaping(name: str, torch_shape: Callable[[Shape], Shape]) -> Layout:
  return Layout(
    name, torch_shape, lambda x, shape: x.reshape(shape), lambda x, shape: x.reshape(shape)
  )


def _transposing(name: str, torch_shape: Callable[[Shape], Shape]) -> Layout:
  # The transpose of a matrix, its axes then split as Flax has them; biases are only split.
  return Layout(
    name,
    torch_shape,
    lambda x, shape: x.T.reshape(shape),
    lambda x, shape: x.reshape(shape[::-1]).T,
  )


def _conv_to_flax(x: Array, shape: Shape) -> Array:
  return (x if x.ndim == 1 else x.transpose(*range(2, x.ndim), 1, 0)).reshape(shape)


def _conv_to_torch(x: Array, shape: Shape) -> Array:
  return (x if x.ndim == 1 else x.transpose(-1, -2, *range(x.ndim - 2))).reshape(shape)


def _split_heads(kernel_rank: int) -> Callable[[Shape], Shape]:
  """The torch shape of a projection whose output axis Flax splits in heads, and of its bias."""
  return lambda shape: (
    (_product(shape[1:]), shape[0]) if len(shape) == kernel_rank else (_product(shape),)
  )


LAYOUTS: dict[str, Layout] = {
  layout.name: layout
  for layout in (
    # The same array.
    _reshaping('identity', lambda shape: shape),
    # (1, ...) -> [...]: a position embedding without its batch axis; (1,) -> [], a scalar.
    _reshaping('unbatched', lambda shape: (1, *shape)),
    # (out, in) -> [in, out]; a bias (out,) stays.
    _transposing('linear', lambda shape: shape[::-1]),
    # (heads*head_dim, in) -> [in, heads, head_dim]; its bias -> [heads, head_dim].
    _transposing('linear_heads_out', _split_heads(3)),
    # (3*heads*head_dim, in) -> [in, 3, heads, head_dim]; its bias -> [3, heads, head_dim].
    _transposing('qkv', _split_heads(4)),
    # (out, heads*head_dim) -> [heads, head_dim, out]; a bias (out,) stays.
    _transposing(
      'linear_heads_in',
      lambda shape: shape if len(shape) == 1 else (shape[-1], _product(shape[:-1])),
    ),
    # (out, in, height, width) -> [height, width, in, out], 1-D and 3-D alike; a bias stays.
    Layout(
      'conv',
      lambda shape: shape if len(shape) == 1 else (shape[-1], shape[-2], *shape[:-2]),
      _conv_to_flax,
      _conv_to_torch,
    ),
    # Of a transposed convolution: (in, out, height, width) -> [height, width, in, out]; a bias
    # stays.
    Layout(
      'transposed_conv',
      lambda shape: shape if len(shape) == 1 else (*shape[-2:], *shape[:-2]),
      lambda x, shape: x if x.ndim == 1 else x.transpose(2, 3, 0, 1),
      lambda x, shape: x if x.ndim == 1 else x.transpose(2, 3, 0, 1),
    ),
    # Of a linear map of a whole map, flattened with its channels first:
    # (out, channels*height*width) -> [height, width, channels, out]; a bias stays.
    Layout(
      'linear_map_in',
      lambda shape: shape if len(shape) == 1 else (shape[-1], _product(shape[:-1])),
      lambda x, shape: (
        x if x.ndim == 1 else x.reshape(shape[3], shape[2], *shape[:2]).transpose(2, 3, 1, 0)
      ),
      lambda x, shape: x if x.ndim == 1 else x.transpose(3, 2, 0, 1).reshape(shape),
    ),
  )
}


def pointwise(name: str = 'linear', rank: int = 2) -> Layout:
  """The layout of a linear map, called `name` in `LAYOUTS`, that torch keeps as a convolution.

  (out, in, 1, 1) -> [in, out] for 'linear' and a `rank` of two axes; a bias is `name`'s.
  """
  base, ones = LAYOUTS[name], (1,) * rank

  def torch_shape(shape: Shape) -> Shape:
    plain = tuple(base.torch_shape(shape))
    return (*plain, *ones) if len(plain) == 2 else plain

  return Layout(
    f'pointwise {name}',
    torch_shape,
    lambda x, shape: base.to_flax(x.reshape(x.shape[:2]), shape),
    lambda x, shape: base.to_torch(x, shape[:2]).reshape(shape),
  )


LAYOUTS['pointwise_conv'] = dataclasses.replace(pointwise(), name='pointwise_conv')
