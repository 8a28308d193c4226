"""Criss-cross attention: every pixel attends to its row and its column under one softmax.

Source: CCNet, Huang et al. 2019 (arXiv 1811.11721), section 3.2; for video its journal version. Its
operations, affinity and aggregation, are `kernels.criss_cross_attention`.
"""

from flax import linen as nn
import jax

from crossattn_jax import kernels
from crossattn_jax.kernels.criss_cross import reference
from crossattn_jax.layers import linear, module


class CrissCrossAttention(module.Module):
  """Recurrent criss-cross attention with a learnt residual gate (section 3.2).

  Twice connects any two pixels of an image, three times any two of a video.

  Attributes:
    recurrence: how often the same parameters are applied.
    reduction: channels of the value per channel of query and key.
    implementation: see `kernels.criss_cross_attention`.
    kernel_init: of the projections; see `linear.Dense`.
    bias_init: likewise.

  Examples:
    >>> attention, x = CrissCrossAttention(recurrence=2), jnp.ones((2, 8, 9, 64))
    >>> y, variables = jax.eval_shape(attention.init_with_output, jax.random.key(0), x)
    >>> y.shape
    (2, 8, 9, 64)
  """

  recurrence: int = 2
  reduction: int = 8
  implementation: str = 'auto'
  kernel_init: nn.initializers.Initializer | None = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer | None = nn.initializers.zeros

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool = False, with_weights: bool = False
  ) -> jax.Array | tuple[jax.Array, list[jax.Array]]:
    """Maps `[batch, height, width, channels]`, or `[batch, time, ...]`, to the same shape.

    Args:
      x: the map.
      train: of no effect.
      with_weights: whether to return the attention weights of each application too, `[batch,
        height, width, height + width]`: over the column, then over the row.
    """
    del train
    channels = x.shape[-1]
    if channels % self.reduction:
      raise ValueError(f'reduction={self.reduction} does not divide the width {channels}')
    common = {'kernel_init': self.kernel_init, 'bias_init': self.bias_init, **self.types}
    query = linear.Dense(channels // self.reduction, name='query', **common)
    key = linear.Dense(channels // self.reduction, name='key', **common)
    value = linear.Dense(channels, name='value', **common)
    gate = self.param('gate', nn.initializers.zeros, (), self.param_dtype)
    # Parameters do not depend on it, and kernels take long to trace.
    implementation = 'reference' if self.is_initializing() else self.implementation
    weights = []
    for _ in range(self.recurrence):
      q, k = query(x), key(x)
      if with_weights:
        weights.append(nn.softmax(reference.affinity(q, k)))
      context = kernels.criss_cross_attention(q, k, value(x), implementation=implementation)
      x, context, scale = nn.dtypes.promote_dtype(x, context, gate, dtype=self.dtype)
      x = x + scale * context
    return (x, weights) if with_weights else x
