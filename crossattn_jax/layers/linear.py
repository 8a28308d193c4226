"""Linear layers: the parameters of flax's, the products of `kernels.products`."""

from collections.abc import Sequence
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import kernels


class Dense(nn.Module):
  """`nn.Dense` and `nn.DenseGeneral`, with the same parameters, by one product.

  Attributes:
    features: sizes of the last axes of the result.
    axis: of the input that are contracted, -1 or (-2, -1) and so on.
    use_bias: whether to add one.
    dtype: of the computation.
    param_dtype: of the parameters.
    kernel_init: of the kernel as a matrix.
    bias_init: of the bias as a vector.
  """

  features: int | Sequence[int]
  axis: int | Sequence[int] = -1
  use_bias: bool = True
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., *contracted]` to `[..., *features]`."""
    features = tuple(self.features) if isinstance(self.features, Sequence) else (self.features,)
    axes = tuple(self.axis) if isinstance(self.axis, Sequence) else (self.axis,)
    contracted = tuple(x.shape[axis] for axis in axes)

    size = math.prod(features)
    kernel = self.param(
      'kernel',
      _reshaped(self.kernel_init, math.prod(contracted), size),
      (*contracted, *features),
      self.param_dtype,
    )
    bias = None
    if self.use_bias:
      bias = self.param('bias', _reshaped(self.bias_init, size), features, self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    x = kernels.contract(x, kernel, axes)
    return x if bias is None else x + bias


class Projections(nn.Module):
  """Several linear maps of one input, with the parameters of one `Dense`.

  Attributes:
    parts: how many maps, 3 for query, key and value.
    num_heads: into which the result of each is split.
    head_dim: width of a head.
    use_bias: whether the maps have biases.
    dtype: of the computation.
    param_dtype: of the parameters.
    kernel_init: of all kernels as one matrix.
    bias_init: of all biases as one vector.
  """

  parts: int
  num_heads: int
  head_dim: int
  use_bias: bool = True
  dtype: jnp.dtype | None = None
  param_dtype: jnp.dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
    """Maps `[..., channels]` to `[..., num_heads * head_dim]` for each part."""
    parameters = self.parameters(x.shape[-1])
    return kernels.project_apart(*nn.dtypes.promote_dtype(x, *parameters, dtype=self.dtype))

  @nn.compact
  def parameters(self, channels: int) -> tuple[jax.Array, jax.Array | None]:
    """Kernel `[channels, parts, num_heads, head_dim]`, bias `[parts, num_heads, head_dim]`."""
    shape = (self.parts, self.num_heads, self.head_dim)
    size = math.prod(shape)
    kernel = self.param(
      'kernel', _reshaped(self.kernel_init, channels, size), (channels, *shape), self.param_dtype
    )
    if not self.use_bias:
      return kernel, None
    return kernel, self.param('bias', _reshaped(self.bias_init, size), shape, self.param_dtype)


def _reshaped(
  initializer: nn.initializers.Initializer, *matrix: int
) -> nn.initializers.Initializer:
  """An initializer for a matrix or a vector, of which it makes another shape."""
  return lambda key, shape, dtype: initializer(key, matrix, dtype).reshape(shape)
