"""Linear layers: the parameters of flax's, the products of `kernels.products`."""

from collections.abc import Sequence
import math

from flax import linen as nn
import jax

from crossattn_jax import kernels
from crossattn_jax.layers import initializers, module

# Draws kernel and bias at first as PyTorch draws those of linear maps.
TORCH = {'kernel_init': None, 'bias_init': None}


class Dense(module.Module):
  """`nn.Dense` and `nn.DenseGeneral`, with the same parameters, by one product.

  Attributes:
    features: sizes of the last axes of the result.
    axis: of the input that are contracted, -1 or (-2, -1) and so on.
    use_bias: whether to add one.
    kernel_init: of the kernel as a matrix; None as in `TORCH`.
    bias_init: of the bias as a vector, likewise.

  Examples:
    >>> layer, x = Dense((4, 16)), jnp.ones((2, 49, 64))  # Into four heads.
    >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape
    (2, 49, 4, 16)
  """

  features: int | Sequence[int]
  axis: int | Sequence[int] = -1
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer | None = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer | None = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., *contracted]` to `[..., *features]`."""
    features = tuple(self.features) if isinstance(self.features, Sequence) else (self.features,)
    axes = tuple(self.axis) if isinstance(self.axis, Sequence) else (self.axis,)
    contracted = tuple(x.shape[axis] for axis in axes)

    width, size = math.prod(contracted), math.prod(features)
    init = _reshaped(self.kernel_init, width, (width, size))
    kernel = self.param('kernel', init, (*contracted, *features), self.param_dtype)
    bias = None
    if self.use_bias:
      init = _reshaped(self.bias_init, width, (size,))
      bias = self.param('bias', init, features, self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    x = kernels.contract(x, kernel, axes)
    return x if bias is None else x + bias


class Projections(module.Module):
  """Several linear maps of one input to heads, with the parameters of one `Dense`.

  Attributes:
    parts: how many maps, 3 for query, key and value.
    num_heads: must divide the channels.
    channels: of the result of each map.
    use_bias: whether the maps have biases.
    kernel_init: of all kernels as one matrix; None as in `TORCH`.
    bias_init: of all biases as one vector, likewise.
  """

  parts: int
  num_heads: int
  channels: int
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer | None = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer | None = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array, parts: slice = slice(None)) -> tuple[jax.Array, ...]:
    """Maps `[..., width]` to `[..., channels]` by each of these parts, the heads side by side."""
    if self.channels % self.num_heads:
      raise ValueError(f'num_heads={self.num_heads} does not divide the width {self.channels}')
    width, shape = x.shape[-1], (self.parts, self.num_heads, self.channels // self.num_heads)
    size = math.prod(shape)
    init = _reshaped(self.kernel_init, width, (width, size))
    kernel = self.param('kernel', init, (width, *shape), self.param_dtype)
    bias = None
    if self.use_bias:
      init = _reshaped(self.bias_init, width, (size,))
      bias = self.param('bias', init, shape, self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    return kernels.project_apart(x, kernel[:, parts], None if bias is None else bias[parts])


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
  """Gives heads an axis: `[..., num_heads * head_dim]` -> `[..., num_heads, head_dim]`."""
  return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)


def _reshaped(
  initializer: nn.initializers.Initializer | None, fan_in: int, matrix: tuple[int, ...]
) -> nn.initializers.Initializer:
  """An initializer for a matrix or a vector, of which it makes another shape."""
  init = initializer or initializers.torch_convolution(fan_in)
  return lambda key, shape, dtype: init(key, matrix, dtype).reshape(shape)
