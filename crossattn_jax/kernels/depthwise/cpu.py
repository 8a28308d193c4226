"""The form for CPUs: a sum of shifted copies."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnums=2)
def forward(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """The sum of shifted copies, one for each entry of the kernel."""
  height, width = _sizes_out(x, stride)
  padded = _padded(x, kernel.shape[0])
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  out = jnp.zeros((x.shape[0], height, width, x.shape[3]), dtype)
  for i in range(kernel.shape[0]):
    for j in range(kernel.shape[1]):
      shifted = padded[:, _strided(i, height, stride), _strided(j, width, stride)]
      out += shifted.astype(dtype) * kernel[i, j, 0].astype(dtype)
  return out.astype(x.dtype)


@functools.partial(jax.jit, static_argnums=3)
def backward(
  x: jax.Array, kernel: jax.Array, cotangent: jax.Array, stride: int = 1
) -> tuple[jax.Array, jax.Array]:
  """The gradients; the kernel's adds up row by row: sums over whole maps miss every cache."""
  side, (height, width) = kernel.shape[0], _sizes_out(x, stride)
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  padded = _padded(x, side)

  def add_row(sums, y):
    row = jax.lax.dynamic_slice_in_dim(cotangent, y, 1, axis=1).astype(dtype)
    inputs = jax.lax.dynamic_slice_in_dim(padded, y * stride, side, axis=1).astype(dtype)
    return [
      total + inputs[:, :, _strided(j, width, stride)] * row for j, total in enumerate(sums)
    ], None

  zeros = [jnp.zeros((x.shape[0], side, width, x.shape[-1]), dtype)] * side
  sums, _ = jax.lax.scan(add_row, zeros, jnp.arange(height))
  gradient = jnp.stack([total.sum((0, 2)) for total in sums], axis=1)[:, :, None]
  if stride > 1:
    # The cotangent where the convolution was computed, zeros between.
    rest = [n - (m - 1) * stride - 1 for n, m in zip(x.shape[1:3], (height, width), strict=True)]
    spread = [(0, 0, 0), *((0, high, stride - 1) for high in rest), (0, 0, 0)]
    cotangent = jax.lax.pad(cotangent, jnp.zeros((), cotangent.dtype), spread)
  return forward(cotangent, kernel[::-1, ::-1]), gradient.astype(kernel.dtype)


def _padded(x: jax.Array, side: int) -> jax.Array:
  margin = (side // 2, side // 2)
  return jnp.pad(x, ((0, 0), margin, margin, (0, 0)))


def _strided(start: int, length: int, stride: int) -> slice:
  """The slice of `length` entries from `start` on, `stride` apart."""
  return slice(start, start + (length - 1) * stride + 1, stride)


def _sizes_out(x: jax.Array, stride: int) -> tuple[int, int]:
  height, width = x.shape[1:3]
  return -(-height // stride), -(-width // stride)
