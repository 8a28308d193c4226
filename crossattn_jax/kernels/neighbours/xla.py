"""Sparse convolutions by gathers alone, in blocks of rows, each a product of matrices."""

import jax
from jax import lax
import jax.numpy as jnp

# Rows of the result whose windows are gathered at once: they stay in a cache for the product.
BLOCK = 512


def convolution(x: jax.Array, kernel: jax.Array, table: jax.Array) -> jax.Array:
  """See `reference.convolution`."""
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  extended, matrix = _extend(x), kernel.reshape(-1, kernel.shape[2])

  def step(carry, rows):
    windows = _windows(extended, rows)
    return carry, jnp.dot(windows, matrix, preferred_element_type=dtype).astype(x.dtype)

  _, blocks = lax.scan(step, None, _split(table, fill=-1))
  return _join(blocks, table.shape[-1])


def gradients(
  x: jax.Array, kernel: jax.Array, table: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Gradients of `x` and `kernel` where row r gave `x[r] @ kernel[j]` to row `table[j, r]`.

  Windows of the cotangent are gathered once, for both. Rows of padding in `x` are to be finite.
  """
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  window, channels, features = kernel.shape
  extended, matrix = _extend(cotangent), kernel.swapaxes(1, 2).reshape(-1, channels)

  def step(total, block):
    rows, x = block
    windows = _windows(extended, rows)
    product = jnp.einsum('bcm,bmk->ck', x, windows, preferred_element_type=dtype)
    of_x = jnp.dot(windows, matrix, preferred_element_type=dtype).astype(x.dtype)
    return total + product, of_x

  total = jnp.zeros((channels, window * features), dtype)
  blocks = _split(table, fill=-1), _split(x.swapaxes(1, 2), fill=0)
  total, of_x = lax.scan(step, total, blocks)
  of_kernel = total.reshape(channels, window, features).swapaxes(0, 1)
  return _join(of_x, table.shape[-1]), of_kernel


def kernel_gradient(x: jax.Array, table: jax.Array, cotangent: jax.Array) -> jax.Array:
  """The gradient of `reference.convolution`'s kernel, `[window, channels, features]`."""
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  window, channels, features = table.shape[1], x.shape[2], cotangent.shape[2]
  extended = _extend(x)

  def step(total, block):
    rows, cotangent = block
    windows = _windows(extended, rows)
    product = jnp.einsum('bdm,bmk->dk', cotangent, windows, preferred_element_type=dtype)
    return total + product, None

  total = jnp.zeros((features, window * channels), dtype)
  blocks = _split(table, fill=-1), _split(cotangent.swapaxes(1, 2), fill=0)
  total, _ = lax.scan(step, total, blocks)
  return total.reshape(features, window, channels).transpose(1, 2, 0)


def transposed_convolution(x: jax.Array, kernel: jax.Array, place: jax.Array) -> jax.Array:
  """See `reference.upsampling`: what a parent has for all octants, then one gather."""
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  parts = jnp.einsum('bnc,kcd->bnkd', x, kernel, preferred_element_type=dtype).astype(x.dtype)
  return _take(_extend(parts.reshape(x.shape[0], -1, kernel.shape[2])), place)


def _extend(x):
  """Adds a row of zeros to each example."""
  return jnp.pad(x, ((0, 0), (0, 1), (0, 0)))


def _take(extended, rows):
  """Rows `[batch, ...]` of each example of `[batch, n + 1, channels]`, the last one for -1."""
  batch, count, channels = extended.shape
  first = count * lax.broadcasted_iota(rows.dtype, (batch, *(1 for _ in rows.shape[1:])), 0)
  rows = jnp.where(rows < 0, count - 1, rows) + first
  # One gather from one matrix: XLA's with a batch is slower.
  return extended.reshape(-1, channels).at[rows].get(mode='promise_in_bounds')


def _windows(extended, rows):
  """`[batch, window, m]` rows as `[batch, m, window * channels]`."""
  windows = _take(extended, rows.swapaxes(1, 2))
  return windows.reshape(*windows.shape[:2], -1)


def _split(x, fill):
  """`[batch, rows, m]` as `[blocks, batch, rows, block]`."""
  block = min(BLOCK, x.shape[2])
  count = -(-x.shape[2] // block)
  x = jnp.pad(x, ((0, 0), (0, 0), (0, count * block - x.shape[2])), constant_values=fill)
  return jnp.moveaxis(x.reshape(*x.shape[:2], count, block), 2, 0)


def _join(blocks, count):
  """`[blocks, batch, block, features]` as `[batch, count, features]`."""
  rows = jnp.moveaxis(blocks, 0, 1)
  return rows.reshape(rows.shape[0], -1, rows.shape[3])[:, :count]
