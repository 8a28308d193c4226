"""Linear layers, in the forms whose gradients are cheap on CPUs and TPUs."""

from collections.abc import Sequence
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

# Rows of the product with ones that adds up gradients. XLA makes a sum of one row again.
_SUMS = 8


def contract(
  x: jax.Array, kernel: jax.Array, axes: Sequence[int] = (-1,), **options: Any
) -> jax.Array:
  """Contracts axes of activations with the first of a kernel, as one product of two matrices.

  XLA:CPU copies both factors of the kernel's gradient where the product has several axes of rows:
  an MLP's forward and backward pass take 1.25 times as long. Under a mesh of several devices the
  axes stay apart, since they may be split; but heads and their channels are one axis there too, or
  a TPU pads the channels of each head to 128.

  Args:
    x: `[..., *contracted]`; or contracted axes elsewhere, and the product is none of matrices.
    kernel: `[*contracted, ...]`.
    axes: of `x`.
    **options: of `jax.lax.dot_general`.

  Returns:
    The product, `[..., ...]`.
  """
  axes = tuple(axis % x.ndim for axis in axes)
  first = tuple(range(len(axes)))
  rows, columns = x.shape[: x.ndim - len(axes)], kernel.shape[len(axes) :]
  if axes != tuple(range(len(rows), x.ndim)):
    return jax.lax.dot_general(x, kernel, ((axes, first), ((), ())), **options)
  width = math.prod(x.shape[len(rows) :])
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.size > 1:
    x, kernel = x.reshape(*rows, width), kernel.reshape(width, *columns)
    return jax.lax.dot_general(x, kernel, (((len(rows),), (0,)), ((), ())), **options)
  x, kernel = x.reshape(math.prod(rows), width), kernel.reshape(width, math.prod(columns))
  product = jax.lax.dot_general(x, kernel, (((1,), (0,)), ((), ())), **options)
  return product.reshape(*rows, *columns)


def project_for_kernel(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
  """A linear map whose result goes into a kernel on a TPU.

  The gradient that comes out of a kernel is fused with nothing, and XLA's sum of it over all
  tokens, for the bias, takes longer than the product itself: 262,000 cycles for bfloat16 `[50176,
  192]` on a v5e, where a product with ones takes as long as reading it (35,000). Elsewhere XLA
  makes the sum along with what comes before, and `Dense` leaves it to that.

  Args:
    x: `[..., channels]`.
    kernel: `[channels, features]`, in `x`'s dtype.
    bias: `[features]`, the same.

  Returns:
    `[..., features]`.
  """
  out = jnp.dot(x, kernel)
  return out if bias is None else _add_bias(out, bias)


@jax.custom_vjp
def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  return x + bias


def _backward(_, gradient):
  axes = tuple(range(gradient.ndim - 1))
  ones = jnp.ones((*gradient.shape[:-1], _SUMS), gradient.dtype)
  sums = jax.lax.dot_general(
    ones,
    gradient,
    ((axes, axes), ((), ())),
    precision='highest',
    preferred_element_type=jnp.promote_types(gradient.dtype, jnp.float32),
  )
  return gradient, sums[0].astype(gradient.dtype)


_add_bias.defvjp(lambda x, bias: (x + bias, None), _backward)


class Dense(nn.Module):
  """`nn.Dense` and `nn.DenseGeneral`, with the same parameters, by `contract`.

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
    x = contract(x, kernel, axes)
    return x if bias is None else x + bias


class Projections(nn.Module):
  """The parameters of several linear maps of one input, as those of one `Dense`.

  Attributes:
    parts: how many maps, 3 for query, key and value.
    num_heads: into which the result of each is split.
    head_dim: width of a head.
    use_bias: whether the maps have biases.
    param_dtype: of the parameters.
    kernel_init: of all kernels as one matrix.
    bias_init: of all biases as one vector.
  """

  parts: int
  num_heads: int
  head_dim: int
  use_bias: bool = True
  param_dtype: jnp.dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, channels: int) -> tuple[jax.Array, jax.Array | None]:
    """Kernel `[channels, parts, num_heads, head_dim]`, bias `[parts, num_heads, head_dim]`."""
    shape = (self.parts, self.num_heads, self.head_dim)
    size = math.prod(shape)
    kernel = self.param(
      'kernel', _reshaped(self.kernel_init, channels, size), (channels, *shape), self.param_dtype
    )
    if not self.use_bias:
      return kernel, None
    return kernel, self.param('bias', _reshaped(self.bias_init, size), shape, self.param_dtype)


def project_apart(
  x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None
) -> tuple[jax.Array, ...]:
  """What `Projections` parametrises, for a kernel on a TPU.

  There each map is a product of its own: to split the result of one takes a TPU longer than to read
  the input three times. Elsewhere it is one product.

  Args:
    x: `[..., channels]`.
    kernel: `[channels, parts, num_heads, head_dim]`, in `x`'s dtype.
    bias: `[parts, num_heads, head_dim]`, the same.

  Returns:
    For each part `[..., num_heads * head_dim]`.
  """
  parts, width = kernel.shape[1], math.prod(kernel.shape[2:])

  def product(x, kernel, bias):
    out = contract(x, kernel)
    out = out if bias is None else out + bias
    # Not a moved axis: the gradient of a split is one concatenation, which CPUs do faster.
    return tuple(part.reshape(*x.shape[:-1], width) for part in jnp.split(out, parts, axis=-3))

  return jax.lax.platform_dependent(x, kernel, bias, tpu=project_each, default=product)


def project_each(
  x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None
) -> tuple[jax.Array, ...]:
  """The form of `project_apart` for TPUs, for where the platform is decided already."""
  parts, width = kernel.shape[1], math.prod(kernel.shape[2:])
  kernels = kernel.reshape(len(kernel), parts, width)
  biases = [None] * parts if bias is None else bias.reshape(parts, width)
  return tuple(project_for_kernel(x, kernels[:, i], biases[i]) for i in range(parts))


def _reshaped(
  initializer: nn.initializers.Initializer, *matrix: int
) -> nn.initializers.Initializer:
  """An initializer for a matrix or a vector, of which it makes another shape."""
  return lambda key, shape, dtype: initializer(key, matrix, dtype).reshape(shape)
