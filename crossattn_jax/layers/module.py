"""The Linen module that all modules with parameters are."""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp


class Module(nn.Module, kw_only=True):
  """A module with two dtypes.

  Attributes:
    dtype: of the computation, None for the inputs' and parameters' common type.
    param_dtype: of the parameters.
  """

  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32

  @property
  def types(self) -> dict[str, Any]:
    """Both, as keyword arguments of a submodule."""
    return {'dtype': self.dtype, 'param_dtype': self.param_dtype}

  @nn.nowrap
  def layer_norm(self, name: str | None = None, epsilon: float = 1e-6) -> nn.LayerNorm:
    """A layer norm over the channels, its variance computed in two passes."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name, **self.types)
