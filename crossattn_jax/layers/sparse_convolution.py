"""Convolutions on the cells of scenes, of which few are occupied.

Source: 4D Spatio-Temporal ConvNets, Choy et al. 2019 (arXiv 1904.08755), section 3.
"""

from typing import NamedTuple

from flax import linen as nn
import jax

from crossattn_jax import kernels, parallel
from crossattn_jax.layers import initializers, module

# Of Minkowski Engine's networks, for rectifiers; the window counts.
kaiming = nn.initializers.variance_scaling(2, 'fan_out', 'normal')


class Level(NamedTuple):
  """The cells of scenes at one resolution, and how they hang together with the next coarser one.

  Attributes:
    neighbours: `[batch, 27, n]` integers, see `geometry.points.neighbours`; -1 in padding. On TPUs
      cells are to be sorted by x, y, z, or they become NaN; see `kernels.sparse_convolution`.
    children: `[batch, 8, m]` integers, rows of this level in each coarser cell; None in the last.
    place: `[batch, n]` integers, 8 times the row of the coarser cell plus the octant in it, -1 in
      padding; None in the last.
  """

  neighbours: jax.Array
  children: jax.Array | None = None
  place: jax.Array | None = None

  @property
  def is_cell(self) -> jax.Array:
    """`[batch, n]`, False in padding: every cell is in its own window."""
    return self.neighbours[:, self.neighbours.shape[1] // 2] >= 0


class SparseConv(module.Module):
  """A convolution of 3 x 3 x 3 cells whose results are at the same cells.

  Attributes:
    features: channels of the result.
    use_bias: whether they have a bias.
  """

  features: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, level: Level) -> jax.Array:
    """Maps `[batch, n, channels]` to `[batch, n, features]`."""
    kernel = _kernel(self, kaiming, level.neighbours.shape[1], x.shape[2])
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    return _constrain(_biased(self, kernels.sparse_convolution(x, kernel, level.neighbours)))


class SparseDownsampling(module.Module):
  """A convolution of 2 x 2 x 2 cells with stride 2.

  Attributes:
    features: channels of the result.
    use_bias: whether they have a bias.
  """

  features: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, finer: Level) -> jax.Array:
    """Maps `[batch, n, channels]` of a level to `[batch, m, features]` of the next coarser one."""
    kernel = _kernel(self, kaiming, 8, x.shape[2])
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    x = kernels.sparse_downsampling(x, kernel, finer.children, finer.place)
    return _constrain(_biased(self, x))


class SparseUpsampling(module.Module):
  """A transposed convolution of 2 x 2 x 2 cells with stride 2, to cells that are there already.

  Attributes:
    features: channels of the result.
    use_bias: whether they have a bias.
  """

  features: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, finer: Level) -> jax.Array:
    """Maps `[batch, m, channels]` of a level to `[batch, n, features]` of the next finer one."""
    kernel = _kernel(self, initializers.torch_convolution(8 * self.features), 8, x.shape[2])
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    x = kernels.sparse_upsampling(x, kernel, finer.children, finer.place)
    return _constrain(_biased(self, x))


class WindowProjection(module.Module):
  """A convolution whose windows are gathered already: one product.

  Attributes:
    features: channels of the result.
    window: places in a window.
  """

  features: int
  window: int = 125

  @nn.compact
  def __call__(self, windows: jax.Array) -> jax.Array:
    """Maps `[batch, n, window * channels]`, place by place, to `[batch, n, features]`."""
    kernel = _kernel(self, kaiming, self.window, windows.shape[2] // self.window)
    windows, kernel = nn.dtypes.promote_dtype(windows, kernel, dtype=self.dtype)
    return _constrain(kernels.contract(windows, kernel.reshape(-1, self.features), (2,)))


def _kernel(layer, init, window, channels):
  return layer.param('kernel', init, (window, channels, layer.features), layer.param_dtype)


def _biased(layer, x):
  if not layer.use_bias:
    return x
  bias = layer.param('bias', nn.initializers.zeros, (layer.features,), layer.param_dtype)
  return x + bias.astype(x.dtype)


def _constrain(x):
  return parallel.constrain(x, 'batch', None, 'channels')
