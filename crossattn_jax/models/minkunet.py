"""MinkUNet: a U-Net of residual blocks on the occupied cells of scenes.

Source: 4D Spatio-Temporal ConvNets, Choy et al. 2019 (arXiv 1904.08755), section 4.3 and figure 4:
what MIT (arXiv 2310.12817) sees points with, and its second stage.
"""

from collections.abc import Sequence
import functools
import itertools

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.layers import batch_norm, linear, module, stack
from crossattn_jax.layers import sparse_convolution as sparse
from crossattn_jax.models import registry
from crossattn_jax.models.parts.types import Features

# Four down, four up.
NUM_STAGES = 8

_KAIMING_OF_INPUT = nn.initializers.variance_scaling(2, 'fan_in', 'normal')


class ResidualBlock(module.Module):
  """Two convolutions, added to the input.

  Attributes:
    width: channels of the result.
  """

  width: int

  @nn.compact
  def __call__(self, x: jax.Array, level: sparse.Level, train: bool = False) -> jax.Array:
    """Maps `[batch, n, channels]` to `[batch, n, width]`."""
    norm = functools.partial(batch_norm.BatchNorm, **self.types)
    y = sparse.SparseConv(self.width, name='conv_0', **self.types)(x, level)
    y = nn.relu(norm(name='norm_0')(y, train, level.is_cell))
    y = sparse.SparseConv(self.width, name='conv_1', **self.types)(y, level)
    y = norm(name='norm_1')(y, train, level.is_cell)
    if x.shape[-1] != self.width:
      x = _projection(self, self.width, 'shortcut')(x)
      x = norm(name='shortcut_norm')(x, train, level.is_cell)
    return nn.relu(x + y)


class BottleneckBlock(module.Module):
  """One cell, 3 x 3 x 3 cells, one cell, added to the input.

  Attributes:
    width: inside; the result has four times as many channels.
  """

  width: int

  @nn.compact
  def __call__(self, x: jax.Array, level: sparse.Level, train: bool = False) -> jax.Array:
    """Maps `[batch, n, channels]` to `[batch, n, 4 * width]`."""
    norm = functools.partial(batch_norm.BatchNorm, **self.types)
    y = _projection(self, self.width, 'conv_0')(x)
    y = nn.relu(norm(name='norm_0')(y, train, level.is_cell))
    y = sparse.SparseConv(self.width, name='conv_1', **self.types)(y, level)
    y = nn.relu(norm(name='norm_1')(y, train, level.is_cell))
    y = _projection(self, 4 * self.width, 'conv_2')(y)
    y = norm(name='norm_2')(y, train, level.is_cell)
    if x.shape[-1] != 4 * self.width:
      x = _projection(self, 4 * self.width, 'shortcut')(x)
      x = norm(name='shortcut_norm')(x, train, level.is_cell)
    return nn.relu(x + y)


def _projection(block, features, name):
  return linear.Dense(
    features, use_bias=False, kernel_init=_KAIMING_OF_INPUT, name=name, **block.types
  )


class Stage(module.Module):
  """Residual blocks at one resolution.

  Attributes:
    width: channels of each.
    depth: how many.
    remat: whether the backward pass recomputes each.
  """

  width: int
  depth: int
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, level: sparse.Level, train: bool = False) -> jax.Array:
    """Maps `[batch, n, channels]` to `[batch, n, width]`."""
    for i in range(self.depth):
      block = ResidualBlock(self.width, name=f'block_{i}', **self.types)
      x = stack.apply_block(block, x, level, train, remat=self.remat)
    return x


class MinkUNet(module.Module):
  """Four stages down and four up, each of which sees what the way down had at its resolution.

  Attributes:
    widths: of the stages, down and up.
    depths: their blocks.
    num_classes: 0 leaves the classifier out.
    stem_width: channels at the finest resolution.
    num_channels: of a cell's colour.
    remat: whether the backward pass recomputes each block.
  """

  widths: tuple[int, ...] = (32, 64, 128, 256, 128, 128, 96, 96)
  depths: tuple[int, ...] = (2, 2, 2, 2, 2, 2, 2, 2)
  num_classes: int = 20
  stem_width: int = 32
  num_channels: int = 3
  remat: bool = False

  def __post_init__(self):
    for field in ('widths', 'depths'):
      if len(getattr(self, field)) != NUM_STAGES:
        raise ValueError(
          f'{field}={getattr(self, field)} needs one entry for each of {NUM_STAGES} stages'
        )
    super().__post_init__()

  @nn.compact
  def __call__(
    self, windows: jax.Array, levels: Sequence[sparse.Level], train: bool = False
  ) -> tuple[jax.Array, Features]:
    """Tells the class of every cell.

    Args:
      windows: `[batch, n, 125 * num_channels]`, the colours of the 5 x 5 x 5 cells around each one
        (`geometry.points.gather`).
      levels: of five resolutions, the finest first; their cells sorted by x, y, z, as
        `geometry.points.voxelize` sorts them.
      train: see `BatchNorm`.

    Returns:
      Logits `[batch, n, num_classes]`, or without classifier the features `[batch, n, widths[7]]`;
      and 'stage_0' to 'stage_7', what each stage gives.

    Raises:
      ValueError: another number of levels.
    """
    if len(levels) != 5:
      raise ValueError(
        f'MinkUNet takes cells at 5 resolutions, got {len(levels)} (config.dataset.num_levels)'
      )
    norm = functools.partial(batch_norm.BatchNorm, **self.types)
    features = {}

    def run_stage(i, x, level):
      stage = Stage(self.widths[i], self.depths[i], self.remat, name=f'stage_{i}', **self.types)
      x = stage(x, level, train)
      features[f'stage_{i}'] = x
      return x

    windows = jnp.where(levels[0].is_cell[..., None], windows, 0)  # Padding may hold anything.
    x = sparse.WindowProjection(self.stem_width, name='stem', **self.types)(windows)
    x = nn.relu(norm(name='stem_norm')(x, train, levels[0].is_cell))
    skips = []
    for i, (finer, level) in enumerate(itertools.pairwise(levels)):
      skips.append(x)
      down = sparse.SparseDownsampling(x.shape[-1], name=f'down_{i}', **self.types)
      x = nn.relu(norm(name=f'down_norm_{i}')(down(x, finer), train, level.is_cell))
      x = run_stage(i, x, level)
    for i, level in enumerate(reversed(levels[:-1])):
      up = sparse.SparseUpsampling(self.widths[4 + i], name=f'up_{i}', **self.types)
      x = nn.relu(norm(name=f'up_norm_{i}')(up(x, level), train, level.is_cell))
      x = run_stage(4 + i, jnp.concatenate([x, skips.pop()], axis=-1), level)
    if self.num_classes:
      x = linear.Dense(
        self.num_classes,
        kernel_init=_KAIMING_OF_INPUT,
        bias_init=None,
        name='head',
        **self.types,
      )(x)
    return x, features


# By the original's name: depths, and widths of the stages.
_ONE, _TWO, _MANY = (1,) * 8, (2,) * 8, (2, 3, 4, 6, 2, 2, 2, 2)
VARIANTS = {
  '14a': (_ONE, (32, 64, 128, 256, 128, 128, 96, 96)),
  '14b': (_ONE, (32, 64, 128, 256, 128, 128, 128, 128)),
  '14c': (_ONE, (32, 64, 128, 256, 192, 192, 128, 128)),
  '14d': (_ONE, (32, 64, 128, 256, 384, 384, 384, 384)),
  '18a': (_TWO, (32, 64, 128, 256, 128, 128, 96, 96)),
  '18b': (_TWO, (32, 64, 128, 256, 128, 128, 128, 128)),
  '18c': (_TWO, (32, 64, 128, 256, 256, 256, 256, 256)),
  '18d': (_TWO, (32, 64, 128, 256, 384, 384, 384, 384)),
  '34a': (_MANY, (32, 64, 128, 256, 256, 128, 64, 64)),
  '34b': (_MANY, (32, 64, 128, 256, 256, 128, 64, 32)),
  '34c': (_MANY, (32, 64, 128, 256, 256, 128, 96, 96)),
}
for _name, (_depths, _widths) in VARIANTS.items():
  registry.register(f'minkunet{_name}', MinkUNet, depths=_depths, widths=_widths)
