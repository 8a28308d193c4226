"""Initialisers of the PyTorch originals that Flax has no name for."""

from collections.abc import Sequence
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# timm cuts this normal at the absolute values +-2, a hundred standard deviations: in effect never.
linear = nn.initializers.normal(stddev=0.02)


def torch_convolution(fan_in: int) -> nn.initializers.Initializer:
  """Returns torch's default of a convolution's weight and bias: uniform within +-1/sqrt(fan_in).

  Args:
    fan_in: input channels times kernel height times kernel width.
  """
  bound = 1 / math.sqrt(fan_in)

  def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def drawn_with(
  key: jax.Array | None, init: nn.initializers.Initializer
) -> nn.initializers.Initializer:
  """`init`, but with this key, so that several parameters start alike; as it is where None."""
  return init if key is None else lambda _, *arguments: init(key, *arguments)


def split_key(key: jax.Array | None, shape: Sequence[int]) -> np.ndarray | jax.Array:
  """Keys `[*shape]` of a key, or as many None of None."""
  return np.full(shape, None) if key is None else jax.random.split(key, shape)
