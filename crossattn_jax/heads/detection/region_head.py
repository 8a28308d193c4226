"""The second stage of a detector: what regions show, where their objects end, and which pixels.

Source: Mask R-CNN, He et al. 2017 (arXiv 1703.06870), on a pyramid (Lin et al. 2017, arXiv
1612.03144, section 4.2), as in mmdetection.
"""

from collections.abc import Sequence

import jax

from crossattn_jax import kernels
from crossattn_jax.heads.detection import box_head, mask_head
from crossattn_jax.layers import module


class RegionHead(module.Module):
  """RoIAlign and the heads for boxes and masks.

  A region's maps are cut from the level of the pyramid that fits its size.

  Attributes:
    num_classes: of the objects.
    channels: of the box head's hidden layers.
    mask_channels: of the mask head; 0 leaves it out.
    mask_convs: of the mask head.
    box_side: cells of a region's map for the box head.
    mask_side: cells of a region's map for the mask head, whose masks have twice as many.
    strides: pixels of the image per cell of the pyramid's levels, finest first.
  """

  num_classes: int
  channels: int = 1024
  mask_channels: int = 256
  mask_convs: int = 4
  box_side: int = 7
  mask_side: int = 14
  strides: tuple[int, ...] = (4, 8, 16, 32)

  def setup(self):
    """The heads, which methods of their own call."""
    self.box_head = box_head.BoxHead(self.num_classes, self.channels, **self.types)
    if self.mask_channels:
      self.mask_head = mask_head.MaskHead(
        self.num_classes, self.mask_channels, self.mask_convs, **self.types
      )

  def boxes(self, levels: Sequence[jax.Array], regions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits of the classes and offsets of the boxes of regions.

    Args:
      levels: of the pyramid, `[batch, height, width, channels]`, finest first.
      regions: `[batch, count, 4]`, corners in pixels of the network's input.

    Returns:
      See `BoxHead`.
    """
    return self.box_head(self._align(levels, regions, self.box_side))

  def masks(self, levels: Sequence[jax.Array], regions: jax.Array) -> jax.Array:
    """Logits of the masks of regions, see `MaskHead`; arguments as for `boxes`."""
    return self.mask_head(self._align(levels, regions, self.mask_side))

  def _align(self, levels: Sequence[jax.Array], regions: jax.Array, side: int) -> jax.Array:
    return kernels.roi_align_pyramid(levels, regions, size=side, strides=self.strides)
