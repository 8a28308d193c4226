"""UPerNet: pyramid pooling on top of a feature pyramid whose levels are concatenated.

Source: Xiao et al. 2018 (arXiv 1807.10221), section 3.1, as in mmsegmentation.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.heads import style as style_lib
from crossattn_jax.heads.segmentation import pyramid_pooling


class UPerHead(nn.Module):
  """Pyramid pooling, lateral convolutions, sums from the top, fusion of all levels.

  Attributes:
    num_classes: of the result.
    style: norms, activations and initialisation; see `style.Style`.
    channels: of every level and of the fused map.
    scales: of the pyramid pooling.

  Examples:
    >>> maps = [jnp.ones((1, side, side, 64)) for side in (32, 16, 8, 4)]
    >>> head = UPerHead(num_classes=150, style=style_lib.Style())
    >>> jax.eval_shape(head.init_with_output, jax.random.key(0), maps)[0].shape
    (1, 32, 32, 150)
  """

  num_classes: int
  style: style_lib.Style
  channels: int = 512
  scales: tuple[int, ...] = pyramid_pooling.SCALES

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool = False) -> jax.Array:
    """Maps a backbone's maps, finest first, to logits at the finest one's size."""
    style, last = self.style, len(maps) - 1
    top = pyramid_pooling.PyramidPooling(
      self.channels, self.channels, pooled_first=False, style=style, scales=self.scales, name='top'
    )
    levels = [top(maps[last], train)]
    for level in reversed(range(last)):
      lateral = style.unit(self.channels, name=f'lateral_{level}')(maps[level], train)
      lateral += style.resize(levels[-1], lateral.shape[1:3])
      levels.append(parallel.constrain(lateral, 'batch', 'height', 'width', 'channels'))
    levels = [
      x if level == last else style.unit(self.channels, 3, name=f'output_{level}')(x, train)
      for level, x in enumerate(reversed(levels))
    ]
    size = levels[0].shape[1:3]
    fused = jnp.concatenate([style.resize(x, size) for x in levels], axis=-1)
    fused = style.unit(self.channels, 3, name='fusion')(fused, train)
    return style.classify(fused, self.num_classes, train)
