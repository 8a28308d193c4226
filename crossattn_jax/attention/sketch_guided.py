"""Sketch-guided attention: what is in a photo looks at the sketch of what is searched for.

Source: Locformer, Tripathi et al. 2024 (arXiv 2303.08784), in the form of its code.
"""

from typing import Literal

from einops import rearrange, repeat
from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import kernels, parallel
from crossattn_jax.layers import initializers, linear, mlp, module, sine_position

Features = dict[str, jax.Array]
Fusion = Literal['mean', 'trainable']
FUSIONS = ('mean', 'trainable')

EPSILON = 1e-5  # Of the norms.
GROUPS = 32  # Of channels that a group norm takes together.


class GuidedFusion(module.Module):
  """LayerNorm(x + FFN(attention of x to a guide)) (arXiv 2303.08784).

  Queries are of x and keys of the guide, both with positions; values are of the guide without. The
  network that follows sees only what was attended to, and x is added to what it says.

  Attributes:
    num_heads: must divide the channels.
    hidden: width within the network.
    drop_rate: of the attention weights, and of both dropouts of the network.
  """

  num_heads: int = 8
  hidden: int = 1024
  drop_rate: float = 0.4

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    guide: jax.Array,
    x_position: jax.Array,
    guide_position: jax.Array,
    train: bool = False,
  ) -> tuple[jax.Array, Features]:
    """Fuses tokens with those of a guide.

    Args:
      x: `[batch, queries, channels]`.
      guide: `[batch, tokens, channels]`; or `[batch, guides, tokens, channels]`, which are attended
        to one by one, and what they give is averaged.
      x_position: added to x, which it broadcasts against.
      guide_position: added to the guide, likewise.
      train: whether to drop.

    Returns:
      `[batch, queries, channels]`; and 'attended', the attention's result, in the same shape, and
      'weights', the mean of all heads' (and guides') attention weights `[batch, queries, tokens]`.
    """
    channels, heads, count = x.shape[-1], self.num_heads, 1 if guide.ndim == 3 else guide.shape[1]
    project = linear.Projections(
      3, heads, channels, kernel_init=nn.initializers.xavier_uniform(), name='qkv', **self.types
    )
    (query,) = project(x + x_position.astype(x.dtype), slice(0, 1))
    (key,) = project(guide + guide_position.astype(guide.dtype), slice(1, 2))
    (value,) = project(guide, slice(2, 3))
    query = parallel.constrain(query, 'batch', 'tokens', ('heads', heads))
    query = repeat(query, 'b n (h d) -> (b k) n h d', k=count, h=heads)
    key, value = (x.reshape(-1, x.shape[-2], heads, channels // heads) for x in (key, value))
    drops = train and self.drop_rate > 0
    dropout = nn.Dropout(self.drop_rate, deterministic=False) if drops else None
    attended = kernels.dot_product_attention(query, key, value, dropout=dropout)
    attended = rearrange(attended, '(b k) n h d -> b k n h d', k=count).mean(axis=1)
    attended = linear.Dense(
      channels,
      axis=(-2, -1),
      kernel_init=initializers.torch_convolution(channels),
      name='out',
      **self.types,
    )(attended)
    change = mlp.FeedForward(self.hidden, self.drop_rate, name='mlp', **self.types)(attended, train)
    scores = jnp.einsum('bnhd,bmhd->bhnm', query, key) * query.shape[-1] ** -0.5
    weights = nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)))
    weights = rearrange(weights, '(b k) h n m -> b (k h) n m', k=count).mean(axis=1)
    out = self.layer_norm('norm', EPSILON)(x + change)
    return out, {'attended': attended, 'weights': weights}


class SketchCrossAttention(module.Module):
  """A map looks at one or several sketches before a stage of the backbone (arXiv 2303.08784).

  Attributes:
    sketch_fusion: of several sketches: 'mean' attends to the mean of their projected maps,
      'trainable' to each, and averages what they give.
    num_heads: see `GuidedFusion`.
    hidden: see there.
    drop_rate: see there.
  """

  sketch_fusion: Fusion = 'mean'
  num_heads: int = 8
  hidden: int = 1024
  drop_rate: float = 0.4

  @nn.compact
  def __call__(
    self, x: jax.Array, sketches: jax.Array, train: bool = False
  ) -> tuple[jax.Array, Features]:
    """Fuses a map with sketches.

    Args:
      x: `[batch, height, width, channels]`.
      sketches: `[batch, sketches, rows, columns, width]`, their features.
      train: whether to drop.

    Returns:
      The map; and the features of `GuidedFusion`, its queries the map's cells row by row.
    """
    (batch, height, width, channels), (rows, columns) = x.shape, sketches.shape[2:4]
    sketches = ProjectionNorm(channels, name='projection', **self.types)(
      sketches.reshape(-1, *sketches.shape[2:])
    )
    guide = sketches.reshape(batch, -1, rows * columns, channels)
    if self.sketch_fusion == 'mean':
      guide = guide.mean(axis=1)
    tokens, features = GuidedFusion(
      self.num_heads, self.hidden, self.drop_rate, name='fusion', **self.types
    )(
      x.reshape(batch, height * width, channels),
      guide,
      sine_position.sine_position(height, width, channels).reshape(-1, channels),
      sine_position.sine_position(rows, columns, channels).reshape(-1, channels),
      train,
    )
    return tokens.reshape(x.shape), features


class ProjectionNorm(module.Module):
  """A linear map of every cell, and a group norm over the whole map.

  Attributes:
    channels: of the result.
    kernel_init: of the linear map; as PyTorch draws it, with its bias, where None.
  """

  channels: int
  kernel_init: nn.initializers.Initializer | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, ..., width]` to `[batch, ..., channels]`."""
    init = initializers.torch_convolution(x.shape[-1])
    x = linear.Dense(
      self.channels,
      kernel_init=self.kernel_init or init,
      bias_init=nn.initializers.zeros if self.kernel_init else init,
      name='linear',
      **self.types,
    )(x)
    return nn.GroupNorm(
      GROUPS, epsilon=EPSILON, use_fast_variance=False, name='norm', **self.types
    )(x)


class SketchFusion(module.Module):
  """One sketch of several: their mean looks at how each differs from it (arXiv 2303.08784).

  Attributes:
    num_heads: see `GuidedFusion`.
    hidden: see there.
    drop_rate: see there.
  """

  num_heads: int = 8
  hidden: int = 1024
  drop_rate: float = 0.4

  @nn.compact
  def __call__(self, sketches: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, sketches, rows, columns, channels]` to `[batch, rows, columns, channels]`."""
    batch, count, rows, columns, channels = sketches.shape
    position = sine_position.sine_position(rows, columns, channels).reshape(-1, channels)
    mean = sketches.mean(axis=1)
    differences = (sketches - mean[:, None]).reshape(batch, -1, channels)
    tokens, _ = GuidedFusion(
      self.num_heads, self.hidden, self.drop_rate, name='fusion', **self.types
    )(
      mean.reshape(batch, -1, channels),
      differences,
      position,
      jnp.tile(position, (count, 1)),
      train,
    )
    return tokens.reshape(mean.shape)
