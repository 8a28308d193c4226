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
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  hidden: int
  drop_rate: float = 0.0
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[..., channels]` to the same shape."""
    common = {
      'kernel_init': initializers.linear,
      'dot_general': linear.dot_general,
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    drop = nn.Dropout(self.drop_rate, deterministic=not train)
    hidden = drop(activations.gelu(nn.Dense(self.hidden, name='fc1', **common)(x)))
    return drop(nn.Dense(x.shape[-1], name='fc2', **common)(hidden))
