"""Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.2).

Equation 1 of that paper is `kernels.dot_product_attention`.
"""

from flax import linen as nn
import jax

from crossattn_jax import kernels, parallel
from crossattn_jax.layers import linear, module


class SelfAttention(module.Module):
  """Multi-head self-attention with one fused projection to query, key and value (section 3.2.2).

  Attributes:
    num_heads: must divide the width of the tokens.
    qkv_bias: whether the fused projection has a bias.
    attention_drop_rate: dropout of the attention weights.
    drop_rate: dropout of the result.
    kernel_init: of both projections; see `linear.Dense`.
    bias_init: likewise.

  Examples:
    >>> attention, x = SelfAttention(num_heads=4), jnp.ones((2, 49, 64))
    >>> jax.eval_shape(attention.init_with_output, jax.random.key(0), x)[0].shape
    (2, 49, 64)
  """

  num_heads: int
  qkv_bias: bool = True
  attention_drop_rate: float = 0.0
  drop_rate: float = 0.0
  kernel_init: nn.initializers.Initializer | None = nn.initializers.normal(stddev=0.02)
  bias_init: nn.initializers.Initializer | None = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
    """Maps `[batch, tokens, channels]` to the same shape.

    Args:
      x: the tokens.
      train: whether it drops.
      mask: bool `[batch, tokens]`, False for tokens that no token attends to.
    """
    channels = x.shape[-1]
    common = {'kernel_init': self.kernel_init, 'bias_init': self.bias_init, **self.types}
    heads = ('heads', self.num_heads)
    project = linear.Projections(3, self.num_heads, channels, self.qkv_bias, name='qkv', **common)
    query, key, value = (
      linear.split_heads(parallel.constrain(part, 'batch', 'tokens', heads), self.num_heads)
      for part in project(x)
    )
    drops_weights = train and self.attention_drop_rate > 0
    dropout = nn.Dropout(self.attention_drop_rate, deterministic=False) if drops_weights else None
    out = kernels.dot_product_attention(query, key, value, mask=mask, dropout=dropout)
    out = linear.Dense(channels, axis=(-2, -1), name='out', **common)(out)
    return nn.Dropout(self.drop_rate, deterministic=not train)(out)
