"""Stochastic depth (Huang et al. 2016, arXiv 1603.09382)."""

from collections.abc import Sequence
import itertools

from flax import linen as nn
import jax
import numpy as np


def growing_rates(rate: float, depths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
  """Returns the rates of the blocks of each stage, which grow linearly from 0 to `rate`.

  Examples:
    >>> [rate.round(2).tolist() for rate in map(np.asarray, growing_rates(0.3, (2, 2)))]
    [[0.0, 0.1], [0.2, 0.3]]
  """
  rates = iter(np.linspace(0, rate, sum(depths)).tolist())
  return tuple(tuple(itertools.islice(rates, depth)) for depth in depths)


class DropPath(nn.Module):
  """Drops a residual branch for whole samples, scaling the kept ones by 1 / (1 - rate).

  Attributes:
    rate: probability that a sample's branch is dropped, in [0, 1); may be traced.
  """

  rate: float | jax.Array

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, ...]` to the same shape; needs the rng 'drop_path' when training."""
    if not train or (not isinstance(self.rate, jax.Array) and self.rate == 0):
      return x
    keep = 1 - self.rate
    kept = jax.random.bernoulli(self.make_rng('drop_path'), keep, x.shape[:1] + (1,) * (x.ndim - 1))
    return x * (kept / keep).astype(x.dtype)
