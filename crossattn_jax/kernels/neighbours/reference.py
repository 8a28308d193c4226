"""The definitions of sparse convolutions."""

import jax
import jax.numpy as jnp


def convolution(x: jax.Array, kernel: jax.Array, table: jax.Array) -> jax.Array:
  """Sums over a window what is in it, by its place: y[m] = sum_k x[table[k, m]] kernel[k].

  Source: 4D Spatio-Temporal ConvNets, Choy et al. 2019 (arXiv 1904.08755), equation 3.

  Args:
    x: `[batch, n, channels]`.
    kernel: `[window, channels, features]`.
    table: `[batch, window, m]` rows of `x`, -1 for none.

  Returns:
    `[batch, m, features]` in `x`'s dtype.
  """
  rows = jax.vmap(lambda x, table: x[table])(x, table)
  rows = jnp.where(table[..., None] >= 0, rows, 0)
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  result = jnp.einsum('bkmc,kcd->bmd', rows, kernel, preferred_element_type=dtype)
  return result.astype(x.dtype)


def downsampling(
  x: jax.Array, kernel: jax.Array, children: jax.Array, place: jax.Array
) -> jax.Array:
  """See `api.sparse_downsampling`: the convolution whose window is a coarse cell's children."""
  del place
  return convolution(x, kernel, children)


def upsampling(x: jax.Array, kernel: jax.Array, children: jax.Array, place: jax.Array) -> jax.Array:
  """See `api.sparse_upsampling`: y[n] = x[parent[n]] kernel[octant[n]].

  Args:
    x: `[batch, m, channels]`.
    kernel: `[8, channels, features]`.
    children: not needed.
    place: `[batch, n]`, 8 times the row of the parent plus the octant, -1 for none.

  Returns:
    `[batch, n, features]` in `x`'s dtype.
  """
  del children
  parent, octant = jnp.divmod(place, 8)
  rows = jax.vmap(lambda x, parent: x[parent])(x, parent)
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  result = jnp.einsum('bnc,bncd->bnd', rows, kernel[octant], preferred_element_type=dtype)
  return jnp.where(place[..., None] >= 0, result, 0).astype(x.dtype)
