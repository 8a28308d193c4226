"""A linear map and a group norm of whole maps, by which detectors make features alike."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.layers import linear, module

EPSILON = 1e-5
GROUPS = 32  # Of channels that a norm takes together.


class ProjectionNorm(module.Module):
  """A linear map of every cell, and a group norm over the whole map.

  Attributes:
    channels: of the result, a multiple of 32.
    kernel_init: of the linear map; as PyTorch draws it, with its bias, where None.
  """

  channels: int
  kernel_init: nn.initializers.Initializer | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, ..., width]` to `[batch, ..., channels]`."""
    x = linear.Dense(
      self.channels,
      kernel_init=self.kernel_init,
      bias_init=nn.initializers.zeros if self.kernel_init else None,
      name='linear',
      **self.types,
    )(x)
    return group_norm('norm', **self.types)(x)


def group_norm(name: str, **types: jnp.dtype) -> nn.GroupNorm:
  """A norm over a whole map of each of 32 groups of channels."""
  return nn.GroupNorm(GROUPS, epsilon=EPSILON, use_fast_variance=False, name=name, **types)
