"""Activations whose fast form differs from the textbook's."""

import math

import jax


def gelu(x: jax.Array) -> jax.Array:
  """Exact GELU, x * Phi(x), in `x`'s dtype (Hendrycks and Gimpel 2016, arXiv 1606.08415).

  Written with erf, as PyTorch does, and not with the erfc of `jax.nn.gelu`: XLA's erf is one
  polynomial, its erfc two and a branch.
  """
  return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))
