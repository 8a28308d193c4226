"""Feature pyramid: maps of all strides with the meaning of the coarsest one.

Source: Lin et al. 2017, "Feature Pyramid Networks for Object Detection" (arXiv 1612.03144),
section 3; the convolved extra levels are RetinaNet's (Lin et al. 2017, arXiv 1708.02002). As in
mmdetection and mmsegmentation.
"""

from collections.abc import Sequence
from typing import Literal

from flax import linen as nn
import jax

from crossattn_jax import kernels, parallel
from crossattn_jax.layers import conv_norm, module, resize


class FeaturePyramid(module.Module):
  """Lateral 1 x 1 convolutions, nearest upsampling from the top, 3 x 3 convolutions.

  Attributes:
    channels: of every level.
    extra_levels: levels beyond the last map, each half as large as the one before.
    extra: what they are made of: every second pixel of the last level ('pool'), as Mask R-CNN's, or
      convolutions with stride 2 of the last map ('input'), as RetinaNet's, of its lateral
      convolution ('lateral') or of the last level ('output').
    extra_relu: whether the convolutions beyond the first extra level see only what is positive.
    norm: whether a batch norm, and no bias, follows every convolution.

  Examples:
    >>> maps = [jnp.ones((1, side, side, 64)) for side in (32, 16, 8)]
    >>> levels, _ = jax.eval_shape(FeaturePyramid(256).init_with_output, jax.random.key(0), maps)
    >>> [level.shape[1:] for level in levels]
    [(32, 32, 256), (16, 16, 256), (8, 8, 256)]
  """

  channels: int
  extra_levels: int = 0
  extra: Literal['pool', 'input', 'lateral', 'output'] = 'pool'
  extra_relu: bool = False
  norm: bool = False

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool = False) -> tuple[jax.Array, ...]:
    """Maps `[batch, height, width, channels_in]` of each level, finest first, to `channels`.

    Args:
      maps: of a backbone, each half as large as the one before. RetinaNet leaves the finest out.
      train: see `BatchNorm`.

    Returns:
      As many maps and the extra levels, each `[batch, height, width, channels]`.
    """
    levels = []
    for level in reversed(range(len(maps))):
      lateral = self._convolve(maps[level], 1, f'lateral_{level}', train)
      if levels:
        lateral += resize.upsample_nearest(levels[-1], lateral.shape[1:3])
      levels.append(parallel.constrain(lateral, 'batch', 'height', 'width', 'channels'))
    levels.reverse()
    outputs = [self._convolve(x, 3, f'output_{level}', train) for level, x in enumerate(levels)]
    last = {'input': maps, 'lateral': levels}.get(self.extra, outputs)[-1]
    for level in range(len(maps), len(maps) + self.extra_levels):
      if self.extra == 'pool':
        last = last[:, ::2, ::2]
      else:
        if self.extra_relu and level > len(maps):
          last = nn.relu(last)
        last = self._convolve(last, 3, f'output_{level}', train, stride=2)
      outputs.append(last)
    return tuple(parallel.constrain(x, 'batch', 'height', 'width', 'channels') for x in outputs)

  def _convolve(
    self, x: jax.Array, side: int, name: str, train: bool, stride: int = 1
  ) -> jax.Array:
    init = nn.initializers.xavier_uniform()
    if self.norm:
      return conv_norm.ConvNorm(
        self.channels,
        side,
        stride,
        activation=None,
        kernel_init=init,
        name=name,
        **self.types,
      )(x, train)
    return nn.Conv(
      self.channels,
      (side, side),
      strides=(stride, stride),
      padding=((side // 2,) * 2,) * 2,
      kernel_init=init,
      conv_general_dilated=kernels.conv_general_dilated,
      name=name,
      **self.types,
    )(x)
