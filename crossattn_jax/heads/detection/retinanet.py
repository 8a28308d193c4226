"""RetinaNet's head: classes and boxes of every anchor, by the same convolutions on all levels.

Source: Lin et al. 2017, "Focal Loss for Dense Object Detection" (arXiv 1708.02002), section 4, as
in mmdetection.
"""

from collections.abc import Sequence
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import kernels, parallel
from crossattn_jax.layers import module

_INIT = nn.initializers.normal(0.01)


def rows_of_anchors(maps: Sequence[jax.Array], channels: int) -> jax.Array:
  """Maps `[batch, height, width, anchors * channels]` as `[batch, all anchors, channels]`.

  Rows are in the order of `anchors.AnchorGrid`, in at least float32.
  """
  rows = jnp.concatenate([x.reshape(x.shape[0], -1, channels) for x in maps], axis=1)
  return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))


def convolution(channels: int, side: int, name: str, bias: float = 0.0, **types: Any) -> nn.Conv:
  """A convolution of a detection head, its weights small and its bias constant."""
  return nn.Conv(
    channels,
    (side, side),
    padding=((side // 2,) * 2,) * 2,
    kernel_init=_INIT,
    bias_init=nn.initializers.constant(bias),
    conv_general_dilated=kernels.conv_general_dilated,
    name=name,
    **types,
  )


class RetinaNetHead(module.Module):
  """Two towers of convolutions, a classifier and a regressor, shared by all levels.

  Attributes:
    num_classes: of objects; the background has no logit.
    anchors_per_cell: of every level.
    channels: of the towers.
    num_convs: of each tower.
    prior: the probability of every class that an untrained head gives.

  Examples:
    >>> head, maps = RetinaNetHead(num_classes=80, anchors_per_cell=9), [jnp.ones((1, 8, 8, 256))]
    >>> outputs, _ = jax.eval_shape(head.init_with_output, jax.random.key(0), maps)
    >>> outputs['logits'].shape, outputs['deltas'].shape
    ((1, 576, 80), (1, 576, 4))
  """

  num_classes: int
  anchors_per_cell: int
  channels: int = 256
  num_convs: int = 4
  prior: float = 0.01

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array]) -> dict[str, jax.Array]:
    """Classifies and places the anchors of a pyramid.

    Args:
      maps: of the levels, `[batch, height, width, channels]`, finest first.

    Returns:
      'logits' `[batch, anchors, classes]` and 'deltas' `[batch, anchors, 4]`, the boxes relative to
      their anchors, in at least float32; the levels' anchors one after another.
    """
    bias = math.log(self.prior / (1 - self.prior))
    logits = self._tower(maps, 'class', self.num_classes, 'classifier', bias)
    deltas = self._tower(maps, 'box', 4, 'regressor', 0.0)
    return {'logits': logits, 'deltas': deltas}

  def _tower(
    self, maps: Sequence[jax.Array], tower: str, channels: int, last: str, bias: float
  ) -> jax.Array:
    convs = [
      convolution(self.channels, 3, f'{tower}_conv_{i}', **self.types)
      for i in range(self.num_convs)
    ]
    final = convolution(self.anchors_per_cell * channels, 3, last, bias, **self.types)
    results = []
    for x in maps:
      for conv in convs:
        x = parallel.constrain(nn.relu(conv(x)), 'batch', 'height', 'width', 'channels')
      results.append(final(x))
    return rows_of_anchors(results, channels)
