"""Block attention and grid attention: windows of neighbours, and of tokens spread over the map.

Source: MaxViT, Tu et al. 2022 (arXiv 2204.01697), section 3.2; the relative position bias is Swin's
(Liu et al. 2021, arXiv 2103.14030, equation 4). Both attend by `kernels.grouped_attention`.
"""

from typing import Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import kernels, parallel
from crossattn_jax.attention import dynamic_position_bias
from crossattn_jax.layers import initializers, linear, module

KINDS = ('block', 'grid')


def find_grouping(size: tuple[int, int], kind: str, window: int) -> kernels.Grouping:
  """How a map is cut into groups of `window` x `window` tokens (section 3.2).

  Args:
    size: of the map; `window` divides height and width.
    kind: 'block': a group is a window of neighbours. 'grid': its tokens are `height / window` rows
      and `width / window` columns apart.
    window: tokens on a side of a group.

  Raises:
    ValueError: another kind.
  """
  if kind not in KINDS:
    raise ValueError(f'{kind=} is not one of {", ".join(KINDS)}')
  interval = (1, 1) if kind == 'block' else (size[0] // window, size[1] // window)
  return kernels.Grouping(tuple(size), (window, window), interval)


class BlockGridAttention(module.Module):
  """Self-attention within blocks or grids, with a learnt bias per relative position (section 3.2).

  A map that the window does not divide is padded with zeros at the bottom and the right, and the
  padding takes part.

  Attributes:
    num_heads: must divide the channels.
    kind: 'block' or 'grid'.
    window: tokens on a side of a group.
    kernel_init: of the projections.
    bias_init: of the projections.

  Examples:
    >>> attention, x = BlockGridAttention(num_heads=2, kind='grid'), jnp.ones((1, 14, 14, 64))
    >>> jax.eval_shape(attention.init_with_output, jax.random.key(0), x)[0].shape
    (1, 14, 14, 64)
  """

  num_heads: int
  kind: Literal['block', 'grid'] = 'block'
  window: int = 7
  kernel_init: nn.initializers.Initializer = initializers.linear
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    (height, width, channels), window, heads = x.shape[1:], self.window, self.num_heads
    options = {'kernel_init': self.kernel_init, 'bias_init': self.bias_init, **self.types}
    x = jnp.pad(x, ((0, 0), (0, -height % window), (0, -width % window), (0, 0)))
    query, key, value = (
      parallel.constrain(part, 'batch', 'height', 'width', ('heads', heads))
      for part in linear.Projections(3, heads, channels, name='qkv', **options)(x)
    )
    side = 2 * window - 1
    table = self.param(
      'relative_position_bias', initializers.linear, (heads, side, side), self.param_dtype
    )
    # Entry [y_key - y_query + window - 1, x_key - x_query + window - 1], the other way round.
    table = jnp.moveaxis(table[:, ::-1, ::-1], 0, -1)
    out = kernels.grouped_attention(
      query,
      key,
      value,
      find_grouping(x.shape[1:3], self.kind, window),
      dynamic_position_bias.relative_position_bias(table),
      num_heads=heads,
    )[:, :height, :width]
    out = linear.split_heads(out, heads)
    return linear.Dense(channels, axis=(-2, -1), name='out', **options)(out)
