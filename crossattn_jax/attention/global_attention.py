"""Self-attention over a whole map, with a local enhancement (LePE).

Sources: BiFormer, Zhu et al. 2023 (arXiv 2303.08810), stage 4; the enhancement is the one of the
CSWin Transformer, Dong et al. 2022 (arXiv 2107.00652), section 3.3.
"""

from typing import Literal

from einops import rearrange
from flax import linen as nn
import jax

from crossattn_jax import kernels, parallel
from crossattn_jax.layers import depthwise_conv, initializers, linear, module


class GlobalAttention(module.Module):
  """Every token attends to every token; a depthwise convolution is added to the result.

  Attributes:
    num_heads: must divide the channels.
    qkv_bias: whether the fused projection has a bias.
    scale: of the scores; head_dim^-0.5 by default.
    lepe: what the convolution is of: the module's 'input', the 'value', or 'none'.
    lepe_side: of its kernel.
    kernel_init: of the projections.
    bias_init: of the projections.

  Examples:
    >>> attention, x = GlobalAttention(num_heads=2), jnp.ones((2, 7, 7, 64))
    >>> jax.eval_shape(attention.init_with_output, jax.random.key(0), x)[0].shape
    (2, 7, 7, 64)
  """

  num_heads: int = 8
  qkv_bias: bool = False
  scale: float | None = None
  lepe: Literal['none', 'input', 'value'] = 'none'
  lepe_side: int = 5
  kernel_init: nn.initializers.Initializer = initializers.linear
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    height, channels = x.shape[1], x.shape[-1]
    options = {'kernel_init': self.kernel_init, 'bias_init': self.bias_init, **self.types}
    project = linear.Projections(
      3, self.num_heads, channels, use_bias=self.qkv_bias, name='qkv', **options
    )
    heads = ('heads', self.num_heads)
    query, key, value = (
      linear.split_heads(parallel.constrain(part, 'batch', None, heads), self.num_heads)
      for part in project(rearrange(x, 'b y x c -> b (y x) c'))
    )
    out = kernels.dot_product_attention(query, key, value, scale=self.scale)
    out = rearrange(out, 'b (y x) h d -> b y x h d', y=height)
    if self.lepe != 'none':
      source = x
      if self.lepe == 'value':
        source = rearrange(value, 'b (y x) h d -> b y x (h d)', y=height)
      lepe = depthwise_conv.DepthwiseConv(self.lepe_side, name='lepe', **self.types)(source)
      out += lepe.reshape(out.shape)
    return linear.Dense(channels, axis=(-2, -1), name='out', **options)(out)
