"""Checksums of the bits of arrays, however they are split over devices."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def of_tree(tree: Any) -> jax.Array:
  """Returns one uint32 for all arrays of a tree."""
  return _of_all([raw(leaf) for leaf in jax.tree.leaves(tree)])


def by_path(leaves: Mapping[str, jax.Array]) -> dict[str, int]:
  """Returns the fingerprint of each array."""
  sums = jax.device_get(_of_each([raw(leaf) for leaf in leaves.values()]))
  return {path: int(value) for path, value in zip(leaves, sums, strict=True)}


def is_key(leaf: Any) -> bool:
  """Whether an array holds PRNG keys."""
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def raw(leaf: jax.Array) -> jax.Array:
  """Returns the array, of a PRNG key its data."""
  return jax.random.key_data(leaf) if is_key(leaf) else leaf


@jax.jit
def _of_all(arrays: Sequence[jax.Array]) -> jax.Array:
  return _fingerprint(jnp.stack([_fingerprint(array) for array in arrays]))


@jax.jit
def _of_each(arrays: Sequence[jax.Array]) -> list[jax.Array]:
  """One program, since many small ones with collectives in flight can starve simulated devices."""
  return [_fingerprint(array) for array in arrays]


def _fingerprint(x: jax.Array) -> jax.Array:
  """Returns a uint32 checksum of an array's bits: a sum of hashes of (position, element).

  Addition modulo 2**32 is exact, so the order in which shards are added does not matter. Elements
  are hashed (MurmurHash3's finalizer) because plain weighted sums do not see a change of many
  exponents at once.
  """
  if x.dtype == bool:
    x = x.astype(jnp.uint8)
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  hashed = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  for dimension in range(hashed.ndim):
    stride = np.uint32(pow(0x9E3779B1, dimension + 1, 2**32))
    hashed += stride * jax.lax.broadcasted_iota(jnp.uint32, hashed.shape, dimension)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    hashed = (hashed ^ (hashed >> shift)) * np.uint32(factor)
  return jnp.sum(hashed ^ (hashed >> 16), dtype=jnp.uint32)
