"""Sketch-guided attention: what is in a photo looks at the sketch of what is searched for.

Source: Locformer, Tripathi et al. 2024 (arXiv 2303.08784), in the form of its code.
"""

from typing import Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import positioned
from crossattn_jax.layers import mlp, module, projection_norm, sine_position

Features = dict[str, jax.Array]
Fusion = Literal['mean', 'trainable']
FUSIONS = ('mean', 'trainable')

EPSILON = 1e-5  # Of the norms.


class GuidedFusion(module.Module):
  """LayerNorm(x + FFN(attention of x to a guide)) (arXiv 2303.08784).

  Queries are of x and keys of the guide, both with positions; values are of the guide without. The
  network that follows sees only what was attended to, and x is added to what it says.

  Attributes:
    num_heads: must divide the channels.
    hidden: width within the network.
    drop_rate: of the attention weights, and of both dropouts of the network.

  Examples:
    >>> fusion, photo = GuidedFusion(hidden=64), jnp.ones((1, 49, 64))
    >>> sketch = jnp.ones((1, 16, 64))
    >>> (y, seen), _ = jax.eval_shape(
    ...   fusion.init_with_output, jax.random.key(0), photo, sketch, photo, sketch
    ... )
    >>> y.shape, seen['weights'].shape
    ((1, 49, 64), (1, 49, 16))
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
    attended, weights = positioned.PositionedAttention(
      self.num_heads, self.drop_rate, out_init=None, name='attention', **self.types
    )(x, guide, x_position, guide_position, train)
    change = mlp.FeedForward(self.hidden, self.drop_rate, name='mlp', **self.types)(attended, train)
    out = self.layer_norm('norm', EPSILON)(x + change)
    return out, {'attended': attended, 'weights': weights}


class SketchCrossAttention(module.Module):
  """A map looks at one or several sketches before a stage of the backbone (arXiv 2303.08784).

  Attributes:
    sketch_fusion: of several sketches: 'mean' attends to the mean of their projected maps,
      'trainable' to each, and averages what they give.
    num_heads: must divide the channels.
    hidden: width within the network.
    drop_rate: of the attention weights, and of both dropouts of the network.
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

    Raises:
      ValueError: unknown fusion of sketches.
    """
    if self.sketch_fusion not in FUSIONS:
      raise ValueError(f'sketch_fusion={self.sketch_fusion!r} is not one of {", ".join(FUSIONS)}')
    (batch, height, width, channels), (rows, columns) = x.shape, sketches.shape[2:4]
    project = projection_norm.ProjectionNorm(channels, name='projection', **self.types)
    sketches = project(sketches.reshape(-1, *sketches.shape[2:]))
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


class SketchFusion(module.Module):
  """One sketch of several: their mean looks at how each differs from it (arXiv 2303.08784).

  Attributes:
    num_heads: must divide the channels.
    hidden: width within the network.
    drop_rate: of the attention weights, and of both dropouts of the network.
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
