"""Block attention and grid attention: windows of neighbours, and of tokens spread over the map.

Source: MaxViT, Tu et al. 2022 (arXiv 2204.01697), section 3.2; the relative position bias is Swin's
(Liu et al. 2021, arXiv 2103.14030, equation 4).
"""

from typing import Literal

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import parallel
from crossattn_jax.layers import initializers, linear

_LAYOUTS = {
  'block': 'b (r h) (s w) c -> b (r s) (h w) c',
  'grid': 'b (h r) (w s) c -> b (r s) (h w) c',
}


def group(x: jax.Array, kind: str, side: int) -> jax.Array:
  """Sorts a map into groups of `side` x `side` tokens.

  Args:
    x: `[batch, height, width, channels]`; `side` divides height and width.
    kind: 'block': a group is a window of neighbours. 'grid': its tokens are `height / side` rows
      and `width / side` columns apart.
    side: of a group.

  Returns:
    `[batch, groups, side * side, channels]`.
  """
  return rearrange(x, _LAYOUTS[kind], h=side, w=side)


def ungroup(groups: jax.Array, kind: str, side: int, height: int) -> jax.Array:
  """The inverse of `group`, for a map of `height` rows."""
  source, target = _LAYOUTS[kind].split(' -> ')
  return rearrange(groups, f'{target} -> {source}', h=side, w=side, r=height // side)


def windowed_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, *, scale: float
) -> jax.Array:
  """Attends within each group, scores biased by relative position.

  Args:
    query: `[batch, groups, tokens, heads, head_dim]`.
    key: the same shape.
    value: the same shape.
    bias: `[heads, tokens, tokens]`.
    scale: of the scores.

  Returns:
    The same shape in `value`'s dtype; the softmax is computed in at least float32.
  """
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum('bgnhd,bgmhd->bghnm', query, key, preferred_element_type=dtype)
  weights = nn.softmax(scores * scale + bias.astype(dtype)).astype(value.dtype)
  return jnp.einsum('bghnm,bgmhd->bgnhd', weights, value)


class BlockGridAttention(nn.Module):
  """Self-attention within blocks or grids, with a learnt bias per relative position.

  A map that the window does not divide is padded with zeros at the bottom and the right, and the
  padding takes part.

  Attributes:
    num_heads: must divide the channels.
    kind: 'block' or 'grid'.
    window: tokens on a side of a group.
    kernel_init: of the projections.
    bias_init: of the projections.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  num_heads: int
  kind: Literal['block', 'grid'] = 'block'
  window: int = 7
  kernel_init: nn.initializers.Initializer = initializers.linear
  bias_init: nn.initializers.Initializer = nn.initializers.zeros
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    (height, width, channels), window = x.shape[1:], self.window
    if channels % self.num_heads:
      raise ValueError(f'num_heads={self.num_heads} does not divide the width {channels}')
    options = {
      'kernel_init': self.kernel_init,
      'bias_init': self.bias_init,
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    x = jnp.pad(x, ((0, 0), (0, -height % window), (0, -width % window), (0, 0)))
    head_dim = channels // self.num_heads
    groups = group(x, self.kind, window)
    qkv = linear.Dense((3, self.num_heads, head_dim), name='qkv', **options)(groups)
    query, key, value = (
      parallel.constrain(part, 'batch', None, None, 'heads', None)
      for part in jnp.moveaxis(qkv, 3, 0)
    )
    side = 2 * window - 1
    table = self.param(
      'relative_position_bias', initializers.linear, (self.num_heads, side, side), self.param_dtype
    )
    # Entry [y_key - y_query + window - 1, x_key - x_query + window - 1].
    offset = np.arange(window) - np.arange(window)[:, None] + window - 1
    bias = table[:, offset[:, None, :, None], offset[None, :, None, :]]
    bias = rearrange(bias, 'h y x v u -> h (y x) (v u)')
    out = windowed_attention(query, key, value, bias, scale=head_dim**-0.5)
    out = linear.Dense(channels, axis=(-2, -1), name='out', **options)(out)
    return ungroup(out, self.kind, window, x.shape[1])[:, :height, :width]
