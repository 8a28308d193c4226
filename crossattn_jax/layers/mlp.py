"""The transformer's multi-layer perceptron."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.layers import activations, initializers, linear


class Mlp(nn.Module):
  """Linear, GELU, dropout, linear back to the input's width, dropout.

  Attributes:
    hidden: width between the two linear maps.
    drop_rate: of both dropouts.
    out_init: of the second linear map's kernel.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  hidden: int
  drop_rate: float = 0.0
  out_init: nn.initializers.Initializer = initializers.linear
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[..., channels]` to the same shape."""
    types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    drop = nn.Dropout(self.drop_rate, deterministic=not train)
    fc1 = linear.Dense(self.hidden, kernel_init=initializers.linear, name='fc1', **types)
    fc2 = linear.Dense(x.shape[-1], kernel_init=self.out_init, name='fc2', **types)
    return drop(fc2(drop(activations.gelu(fc1(x)))))
