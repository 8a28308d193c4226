"""Pyramid pooling: averages over coarse grids, brought back to the map.

Source: PSPNet, Zhao et al. 2017 (arXiv 1612.01105), section 3.2.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.heads import style as style_lib
from crossattn_jax.layers import pooling

SCALES = (1, 2, 3, 6)


class PyramidPooling(nn.Module):
  """Pooled and projected maps beside the input, fused by a 3 x 3 convolution.

  Attributes:
    channels: of each pooled map.
    fused: channels of the result.
    pooled_first: whether the pooled maps come before the input in the concatenation.
    style: norms, activations and initialisation; see `style.Style`.
    scales: bins per side.
  """

  channels: int
  fused: int
  pooled_first: bool
  style: style_lib.Style
  scales: tuple[int, ...] = SCALES

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels_in]` to `[batch, height, width, fused]`."""
    pooled = []
    for scale in self.scales:
      y = pooling.adaptive_average_pool(x, (scale, scale))
      y = self.style.unit(self.channels, name=f'pool_{scale}')(y, train)
      pooled.append(self.style.resize(y, x.shape[1:3]))
    parts = [*pooled, x] if self.pooled_first else [x, *pooled]
    return self.style.unit(self.fused, 3, name='fusion')(jnp.concatenate(parts, axis=-1), train)
