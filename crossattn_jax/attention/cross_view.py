"""Cross-view attention: the views are compressed, concatenated, and attend to all of them.

Source: MMViT, Liu et al. 2023 (arXiv 2305.00104), the cross-attention block of each scale stage.
Keys and values are compressed by MViT's pooling; docs/mmvit.md says what the paper leaves open.
"""

from collections.abc import Sequence
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import cross_attention, pooled
from crossattn_jax.attention.pooled import Grid
from crossattn_jax.layers import initializers, linear, module


class CrossViewAttention(module.Module):
  """Self-attention over the tokens of several views at once, whose keys are pooled view by view.

  Attributes:
    num_heads: must divide the channels.
    strides: of the pooling of keys and values, per view; None leaves them as they are.
    kernel_init: of the fused projection.
    out_init: of the projection out of the heads.

  Examples:
    >>> attention = CrossViewAttention(num_heads=2, strides=(2, 1))
    >>> x, grids = jnp.ones((1, 1 + 64 + 16, 32)), ((8, 8), (4, 4))
    >>> init = lambda key: attention.init_with_output(key, x, grids)
    >>> (y, weights), _ = jax.eval_shape(init, jax.random.key(0))
    >>> y.shape, weights.shape
    ((1, 81, 32), (1, 2, 33))
  """

  num_heads: int
  strides: tuple[int | Grid, ...] | None
  kernel_init: nn.initializers.Initializer = initializers.linear
  out_init: nn.initializers.Initializer = initializers.linear

  @nn.compact
  def __call__(self, x: jax.Array, grids: Sequence[Grid]) -> tuple[jax.Array, jax.Array]:
    """Attends over all views.

    Args:
      x: `[batch, extra + positions of all views, channels]`; the extra tokens belong to the first.
      grids: (height, width) of each view.

    Returns:
      The same shape, and the weights of the first token: `[batch, heads, keys]`, in at least
      float32; keys are the extra tokens, then the pooled positions of each view.
    """
    channels = x.shape[-1]
    project = linear.Projections(
      3, self.num_heads, channels, kernel_init=self.kernel_init, name='qkv', **self.types
    )
    if self.strides is None:
      query, key, value = (linear.split_heads(part, self.num_heads) for part in project(x))
    else:
      query = linear.split_heads(project(x, slice(1))[0], self.num_heads)
      compressed = []
      views = zip(split_views(x, grids), grids, self.strides, strict=True)
      for v, (view, grid, stride) in enumerate(views):
        tokens = pooled.split_tokens(view, grid)
        parts = zip(*(project(part, slice(1, 3)) for part in tokens), strict=True)
        compressed.append(
          [
            pooled.PoolHeads(self.num_heads, stride, name=f'pool_{name}_{v}', **self.types)(*part)
            for name, part in zip(('key', 'value'), parts, strict=True)
          ]
        )
      key, value = (jnp.concatenate(parts, axis=1) for parts in zip(*compressed, strict=True))
    out = linear.Dense(
      channels, axis=(-2, -1), kernel_init=self.out_init, name='out', **self.types
    )(pooled.attend(query, key, value))
    return out, cross_attention.class_token_weights(query[:, 0], key)


def split_views(x: jax.Array, grids: Sequence[Grid]) -> list[jax.Array]:
  """Splits `[batch, extra + positions of all views, ...]` by view, extra tokens with the first."""
  ends = x.shape[1] - sum(map(math.prod, grids))
  views, start = [], 0
  for grid in grids:
    ends += math.prod(grid)
    views.append(x[:, start:ends])
    start = ends
  return views
