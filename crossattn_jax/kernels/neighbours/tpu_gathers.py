"""Sparse convolutions by gathers, as XLA for TPUs likes them: scene by scene, place by place.

What `xla` gathers, the rows of a window next to each other, a TPU lays out anew for the product;
and where there are several scenes, XLA copies all of them for each block. Here what is at one place
of the windows is a matrix as it comes.
"""

import jax
from jax import lax
import jax.numpy as jnp

# Rows whose windows are gathered at once. More leave no room in VMEM beside a scene of 400,000.
BLOCK = 1024


def convolution(x: jax.Array, kernel: jax.Array, table: jax.Array) -> jax.Array:
  """See `reference.convolution`."""

  def scene(x, table):
    extended = _extend(x)
    block = lambda rows: _sum_of_products(_take(extended, rows), kernel).astype(x.dtype)
    return _join(lax.map(block, _split(table, fill=-1)), table.shape[1])

  return lax.map(lambda arrays: scene(*arrays), (x, table))


def gradients(
  x: jax.Array, kernel: jax.Array, table: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """See `xla.gradients`."""
  backwards = kernel.swapaxes(1, 2)

  def scene(x, table, cotangent):
    extended = _extend(cotangent)

    def step(total, block):
      rows, across = block
      windows = _take(extended, rows)
      of_x = _sum_of_products(windows, backwards).astype(x.dtype)
      return total + _products_of(across, windows), of_x

    total = jnp.zeros((x.shape[1], len(table), cotangent.shape[1]), _sum_dtype(x))
    of_kernel, of_x = lax.scan(step, total, (_split(table, fill=-1), _split(x.T, fill=0)))
    return _join(of_x, len(x)), of_kernel

  of_x, of_kernel = lax.map(lambda arrays: scene(*arrays), (x, table, cotangent))
  return of_x, of_kernel.sum(axis=0).swapaxes(0, 1)


def kernel_gradient(x: jax.Array, table: jax.Array, cotangent: jax.Array) -> jax.Array:
  """See `xla.kernel_gradient`."""

  def scene(x, table, cotangent):
    extended = _extend(x)

    def step(total, block):
      rows, across = block
      return total + _products_of(across, _take(extended, rows)), None

    total = jnp.zeros((cotangent.shape[1], len(table), x.shape[1]), _sum_dtype(x))
    return lax.scan(step, total, (_split(table, fill=-1), _split(cotangent.T, fill=0)))[0]

  of_scenes = lax.map(lambda arrays: scene(*arrays), (x, table, cotangent))
  return of_scenes.sum(axis=0).transpose(1, 2, 0)


def transposed_convolution(x: jax.Array, kernel: jax.Array, place: jax.Array) -> jax.Array:
  """See `reference.upsampling`: what parents have for an octant is a matrix, too."""

  def scene(x, place):
    octants = jnp.concatenate([_dot(x, matrix).astype(x.dtype) for matrix in kernel])
    parent, octant = jnp.divmod(place, len(kernel))
    rows = octants.at[octant * len(x) + parent].get(mode='clip')
    return jnp.where(place[:, None] >= 0, rows, 0)

  return lax.map(lambda arrays: scene(*arrays), (x, place))


def _sum_dtype(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _dot(x, y):
  return jnp.dot(x, y, preferred_element_type=_sum_dtype(x))


def _sum_of_products(places, kernel):
  return sum(_dot(rows, matrix) for rows, matrix in zip(places, kernel, strict=True))


def _products_of(across, places):
  """`[channels, block]` times each of `[window, block, features]`: `[channels, window, features]`.

  One product, in which XLA keeps the smaller array in the matrix unit.
  """
  return jnp.einsum('cm,kmf->ckf', across, places, preferred_element_type=_sum_dtype(across))


def _extend(x):
  """Adds a row of zeros."""
  return jnp.pad(x, ((0, 1), (0, 0)))


def _take(extended, rows):
  """Rows `[...]` of `[n + 1, channels]`, the last one for -1."""
  rows = jnp.where(rows < 0, len(extended) - 1, rows)
  return extended.at[rows].get(mode='promise_in_bounds')


def _split(x, fill):
  """`[rows, n]` as `[blocks, rows, block]`."""
  block = min(BLOCK, x.shape[1])
  x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)), constant_values=fill)
  return x.reshape(len(x), -1, block).swapaxes(0, 1)


def _join(blocks, count):
  """`[blocks, block, features]` as `[count, features]`."""
  return blocks.reshape(-1, blocks.shape[2])[:count]
