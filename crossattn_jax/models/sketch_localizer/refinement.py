"""What is done with decoded queries: they and the sketch refine each other, and are scored.

Source: Locformer, Tripathi et al. 2024 (arXiv 2303.08784), in the form of its code.
"""

from collections.abc import Sequence
import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import sketch_guided
from crossattn_jax.heads.detection import deformable_decoder
from crossattn_jax.layers import initializers, linear, module, projection_norm, sine_position


class SketchProjection(module.Module):
  """A group norm of a sketch's features, and a linear map of every cell.

  Attributes:
    channels: of the result.
  """

  channels: int = 256

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., rows, columns, width]` to `[..., rows, columns, channels]`."""
    norm = projection_norm.group_norm('norm', **self.types)
    sketches = norm(x.reshape(-1, *x.shape[-3:])).reshape(x.shape)
    return linear.Dense(self.channels, name='linear', **linear.TORCH, **self.types)(sketches)


class RefinementHead(module.Module):
  """Scores and boxes of the queries at every level of the decoder (arXiv 2303.08784).

  From some level on, queries look at the sketch and the sketch at the queries before these are
  scored; the refined sketch goes to the next level. Scores compare queries with the sketch as it
  came; boxes are of the queries as they were decoded.

  Attributes:
    num_classes: of which 1 says that a query is what the sketch shows.
    first_level: that is refined; level 0 is of the queries before the decoder.
    num_heads: of the attentions.
    hidden: width of the networks behind them.
    drop_rate: of the attentions and networks.
    prior: the probability of every class at first.
  """

  num_classes: int = 2
  first_level: int = 3
  num_heads: int = 8
  hidden: int = 1024
  drop_rate: float = 0.4
  prior: float = 0.01

  @nn.compact
  def __call__(
    self,
    decoded: deformable_decoder.Decoded,
    position: jax.Array,
    sketches: jax.Array,
    box_heads: Sequence[deformable_decoder.BoxHead],
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """Scores queries, and says boxes.

    Args:
      decoded: of the decoder, with boxes.
      position: `[1 or batch, queries, channels]`, of the queries.
      sketches: `[batch, sketches, rows, columns, channels]`, projected.
      box_heads: one per level, which the decoder has used too.
      train: whether to drop.

    Returns:
      Logits `[levels, batch, queries, classes]`, and boxes `[levels, batch, queries, 4]`, centres
      and sizes as fractions of the image; both in at least float32.
    """
    channels, levels = sketches.shape[-1], len(decoded.states)
    init = initializers.torch_convolution
    whole = sketches.max(axis=(2, 3)).mean(axis=1)
    cells = sine_position.sine_position(*sketches.shape[2:4], channels).reshape(-1, channels)
    sketch = sketches.mean(axis=1).reshape(sketches.shape[0], -1, channels)

    def fusion(name: str) -> sketch_guided.GuidedFusion:
      return sketch_guided.GuidedFusion(
        self.num_heads, self.hidden, self.drop_rate, name=name, **self.types
      )

    # All levels start alike.
    key = self.make_rng('params') if self.is_initializing() else None
    of_sketch, of_bias, of_both = (
      functools.partial(initializers.drawn_with, x) for x in initializers.split_key(key, (3,))
    )
    logits, boxes = [], []
    for level, state in enumerate(decoded.states):
      refined = state
      if level >= self.first_level:
        refined, _ = fusion(f'object_fusion_{level}')(state, sketch, position, cells, train)
        if level < levels - 1:
          sketch, _ = fusion(f'sketch_fusion_{level}')(sketch, refined, cells, position, train)
      searched = linear.Dense(
        channels,
        kernel_init=of_sketch(init(channels)),
        bias_init=of_bias(init(channels)),
        name=f'sketch_linear_{level}',
        **self.types,
      )(nn.relu(whole))
      both = jnp.concatenate(
        [jnp.broadcast_to(searched[:, None], refined.shape).astype(refined.dtype), refined], axis=-1
      )
      classify = linear.Dense(
        self.num_classes,
        kernel_init=of_both(init(2 * channels)),
        bias_init=nn.initializers.constant(-math.log((1 - self.prior) / self.prior)),
        name=f'class_{level}',
        **self.types,
      )
      logits.append(classify(both))
      reference = decoded.references[level - 1] if level else decoded.first_reference
      change = box_heads[level](state).astype(reference.dtype)
      boxes.append(deformable_decoder.move(reference, change))
    scores = jnp.stack(logits)
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), jnp.stack(boxes)
