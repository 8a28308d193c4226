"""The neck of YOLOv5: a feature pyramid from coarse to fine, and a second one back.

Source: feature pyramids, Lin et al. 2017 (arXiv 1612.03144); the way back, "Path Aggregation
Network", Liu et al. 2018 (arXiv 1803.01534). Maps are concatenated, not added.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.layers import module, resize
from crossattn_jax.models.backbones import csp_darknet


class PathAggregation(module.Module):
  """Three maps to three maps of the same sizes, each of which has seen all three.

  Attributes:
    widths: channels of the eight parts in the order in which they run: two steps up, of a 1 x 1
      convolution and a stage each, and two steps down, of a 3 x 3 convolution with stride 2 and a
      stage each. Only stages return maps: the second, third and fourth.
    depth: bottlenecks of a stage.
  """

  widths: tuple[int, ...]
  depth: int

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool = False) -> tuple[jax.Array, ...]:
    """Maps `[batch, height, width, channels]` at strides 8, 16 and 32 to those of the levels."""
    fine, middle, x = maps
    beside = []
    for i, finer in enumerate((middle, fine)):
      x = csp_darknet.ConvUnit(self.widths[2 * i], 1, name=f'reduce_{i}', **self.types)(x, train)
      beside.append(x)
      x = jnp.concatenate([resize.upsample_nearest(x, finer.shape[1:3]), finer], axis=-1)
      x = self._stage(2 * i + 1, f'up_{i}')(x, train)
    levels = [x]
    for i, coarser in enumerate(reversed(beside)):
      width = self.widths[4 + 2 * i]
      x = csp_darknet.ConvUnit(width, 3, 2, name=f'shrink_{i}', **self.types)(x, train)
      x = jnp.concatenate([x, coarser], axis=-1)
      x = self._stage(5 + 2 * i, f'down_{i}')(x, train)
      levels.append(x)
    return tuple(levels)

  def _stage(self, part: int, name: str) -> csp_darknet.CrossStage:
    return csp_darknet.CrossStage(
      self.widths[part], self.depth, shortcut=False, name=name, **self.types
    )
