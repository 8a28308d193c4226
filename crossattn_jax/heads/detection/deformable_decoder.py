"""The decoder of Deformable DETR: queries look at maps around boxes, which they move step by step.

Source: Deformable DETR, Zhu et al. 2021 (arXiv 2010.04159), section 4.2 and appendix A.4; without
an encoder and starting from boxes of the queries themselves as in ViDT, Song et al. 2022 (arXiv
2110.03921), section 3.2.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import deformable, positioned
from crossattn_jax.layers import initializers, linear, mlp, module, stack

EPSILON = 1e-5  # Of the norms.
BoxHead = Callable[[jax.Array], jax.Array]


def inverse_sigmoid(x: jax.Array, eps: float = 1e-5) -> jax.Array:
  """The logits of numbers between 0 and 1, none farther from 0 than that of `eps`."""
  x = jnp.clip(x, 0, 1)
  return jnp.log(jnp.maximum(x, eps) / jnp.maximum(1 - x, eps))


def move(reference: jax.Array, change: jax.Array) -> jax.Array:
  """Boxes as the logits of a reference say, plus a change (appendix A.4).

  Args:
    reference: `[..., 2]`, centres, or `[..., 4]`, centres and sizes, as fractions of the image.
    change: `[..., 4]`, of the logits. Of a centre, the sizes' logits are the change.

  Returns:
    `[..., 4]`, centres and sizes as fractions of the image.
  """
  logits = inverse_sigmoid(reference)
  missing = change.shape[-1] - logits.shape[-1]
  return nn.sigmoid(change + jnp.pad(logits, [(0, 0)] * (logits.ndim - 1) + [(0, missing)]))


def valid_ratios(padding: jax.Array) -> jax.Array:
  """The shares of width and height that are none of padding.

  Args:
    padding: bool `[batch, rows, columns]`, True at the right and at the bottom: the first row and
      the first column tell.

  Returns:
    `[batch, 2]` float32, as the originals have it in any precision.
  """
  shares = [
    jnp.mean(~edge, axis=-1, dtype=jnp.result_type(float))
    for edge in (padding[:, 0], padding[:, :, 0])
  ]
  return jnp.stack(shares, axis=-1).astype(jnp.float32)


class Regressor(module.Module):
  """Three linear maps with rectifiers between; at first it says the same of every query.

  Attributes:
    first: what it says at first, such as 4 numbers for the logits of a box.
    key: of its initial values, so that several start alike; None for one of its own.
  """

  first: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
  key: jax.Array | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., channels]` to as many numbers as `first` has."""
    channels = x.shape[-1]
    init = initializers.torch_convolution(channels)
    for i, keys in enumerate(initializers.split_key(self.key, (2, 2))):
      kernel_init, bias_init = (initializers.drawn_with(key, init) for key in keys)
      x = linear.Dense(
        channels, kernel_init=kernel_init, bias_init=bias_init, name=f'linear_{i}', **self.types
      )(x)
      x = nn.relu(x)
    return linear.Dense(
      len(self.first),
      kernel_init=nn.initializers.zeros,
      bias_init=lambda key, shape, dtype: jnp.array(self.first, dtype),
      name='linear_2',
      **self.types,
    )(x)


class DecoderLayer(module.Module):
  """Queries attend to each other, look at the maps, and go through a network; normed after each.

  Attributes:
    num_heads: of both attentions.
    num_points: at which a head looks on every map.
    hidden: width of the network.
    drop_rate: of all dropouts.
  """

  num_heads: int = 8
  num_points: int = 4
  hidden: int = 1024
  drop_rate: float = 0.1

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    position: jax.Array,
    reference: jax.Array,
    memory: jax.Array,
    sizes: deformable.Sizes,
    padding: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """Maps queries `[batch, queries, channels]` to the same shape.

    Args:
      x: the queries.
      position: of the queries, which it broadcasts against.
      reference: see `deformable.sampling_locations`.
      memory: `[batch, positions, channels]`, the maps one after the other, row by row.
      sizes: rows and columns of the maps.
      padding: bool `[batch, positions]`, True for what is none of the image.
      train: whether to drop.
    """
    drop = nn.Dropout(self.drop_rate, deterministic=not train)
    attended, _ = positioned.PositionedAttention(
      self.num_heads, self.drop_rate, name='attention', **self.types
    )(x, x, position, position, train)
    x = self.layer_norm('norm_self', EPSILON)(x + drop(attended))
    looked = deformable.DeformableAttention(
      self.num_heads, self.num_points, name='deformable', **self.types
    )(x + position, reference, memory, sizes, padding)
    x = self.layer_norm('norm_deformable', EPSILON)(x + drop(looked))
    xavier = nn.initializers.xavier_uniform()
    network = mlp.FeedForward(self.hidden, self.drop_rate, xavier, name='mlp', **self.types)
    return self.layer_norm('norm_mlp', EPSILON)(x + network(x, train))


class Decoded(NamedTuple):
  """What a decoder returns of its `queries`.

  Attributes:
    states: `[layers + 1, batch, queries, channels]`, of the queries as they came and of each layer.
    first_reference: `[batch, queries, 2]`, their points, fractions of the image.
    references: `[layers + 1, batch, queries, 4]`, the boxes that each layer got and the last one
      leaves; or the points, `[..., 2]`, where boxes are not refined.
  """

  states: jax.Array
  first_reference: jax.Array
  references: jax.Array


class DeformableDecoder(module.Module):
  """Layers that look around boxes, and move the boxes before the next layer (section 4.2).

  Attributes:
    num_layers: of the decoder.
    num_heads: of both attentions of a layer.
    num_points: at which a head looks on every map.
    hidden: width of a layer's network.
    drop_rate: of all dropouts.
    remat: whether the backward pass recomputes each layer.
  """

  num_layers: int = 6
  num_heads: int = 8
  num_points: int = 4
  hidden: int = 1024
  drop_rate: float = 0.1
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    queries: jax.Array,
    position: jax.Array,
    maps: Sequence[jax.Array],
    paddings: Sequence[jax.Array],
    box_heads: Sequence[BoxHead] | None = None,
    train: bool = False,
  ) -> Decoded:
    """Decodes queries.

    Args:
      queries: `[batch, queries, channels]`.
      position: `[1 or batch, queries, channels]`.
      maps: `[batch, rows, columns, channels]`, each.
      paddings: bool `[batch, rows, columns]` of each map, True for what is none of the image.
      box_heads: of the queries and of what each layer returns: what changes the logits of boxes,
        which have no gradient from one layer to the next. None keeps the queries' points.
      train: whether to drop.
    """
    sizes = [x.shape[1:3] for x in maps]
    memory = jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in maps], axis=1)
    padding = jnp.concatenate([x.reshape(x.shape[0], -1) for x in paddings], axis=1)
    point = nn.sigmoid(
      linear.Dense(
        2,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=None,
        name='point',
        **self.types,
      )(position)
    )
    # Positions are finer than what bfloat16 tells apart.
    point = point.astype(jnp.promote_types(point.dtype, jnp.float32))
    point = jnp.broadcast_to(point, (*queries.shape[:2], 2))
    ratios = jnp.stack([valid_ratios(x) for x in paddings], axis=1)[:, None].astype(point.dtype)

    def refined(layer: int, x: jax.Array, reference: jax.Array) -> jax.Array:
      if box_heads is None:
        return reference
      return jax.lax.stop_gradient(move(reference, box_heads[layer](x).astype(reference.dtype)))

    x, reference = queries, refined(0, queries, point)
    states, references = [x], [reference]
    for i in range(self.num_layers):
      seen = reference[:, :, None] * jnp.tile(ratios, reference.shape[-1] // 2)
      layer = DecoderLayer(
        self.num_heads,
        self.num_points,
        self.hidden,
        self.drop_rate,
        name=f'layer_{i}',
        **self.types,
      )
      arguments = position, seen, memory, sizes, padding, train
      x = stack.apply_block(layer, x, *arguments, remat=self.remat)
      reference = refined(i + 1, x, reference)
      states.append(x)
      references.append(reference)
    return Decoded(jnp.stack(states), point, jnp.stack(references))
