"""Which anchors a detector has: of every level of its pyramid, for inputs of any size."""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.geometry import anchors as anchor_ops
from crossattn_jax.heads import style as style_lib


@dataclasses.dataclass(frozen=True)
class Anchors:
  """The anchors of a detector.

  Attributes:
    strides: pixels of the input per cell of every level, finest first.
    scales: sides of a square anchor, in strides.
    ratios: heights over widths.
    boxes: the conventions.
    dtype: in which the anchors of a cell are computed: as in mmdetection, single precision.
  """

  strides: tuple[int, ...]
  scales: tuple[float, ...]
  ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
  boxes: style_lib.Boxes = style_lib.MMDETECTION
  dtype: type[np.floating] = np.float32

  def __post_init__(self):
    if not all(values and min(values) > 0 for values in (self.scales, self.ratios)):
      raise ValueError(
        f'anchors have the scales {self.scales} and the ratios {self.ratios}; expected at least '
        'one of each, above 0: see anchor_scale or anchor_scales, scales_per_octave, anchor_ratios '
        'of the model'
      )

  @property
  def per_cell(self) -> int:
    """Anchors of a cell."""
    return len(self.scales) * len(self.ratios)

  def cells(self) -> list[np.ndarray]:
    """The anchors of the first cell of every level, `[per_cell, 4]` each."""
    return [
      anchor_ops.cell_anchors(
        stride,
        self.scales,
        self.ratios,
        center_offset=self.boxes.center_offset,
        inclusive=self.boxes.inclusive,
        dtype=self.dtype,
      )
      for stride in self.strides
    ]

  def of_input(self, size: Sequence[int]) -> 'AnchorGrid':
    """The anchors of an input of `size` = (height, width), whose maps are rounded up."""
    return AnchorGrid(self, _map_sizes(size, self.strides))


@dataclasses.dataclass(frozen=True)
class SizedAnchors:
  """The anchors of a detector, their sizes given one by one.

  Attributes:
    strides: pixels of the input per cell of every level, finest first.
    sizes: (width, height) in pixels of every anchor of a level, as many on each.
    boxes: the conventions.
    dtype: in which the anchors of a cell are computed.
  """

  strides: tuple[int, ...]
  sizes: tuple[tuple[tuple[float, float], ...], ...]
  boxes: style_lib.Boxes = style_lib.YOLOV5
  dtype: type[np.floating] = np.float64

  def __post_init__(self):
    sizes = [size for level in self.sizes for size in level]
    sides = [side for size in sizes for side in size]
    as_many = {len(level) for level in self.sizes} == {len(sizes) / max(len(self.strides), 1)}
    if not (as_many and len(sides) == 2 * len(sizes) and min(sides, default=0) > 0):
      raise ValueError(
        f'anchors have the sizes {self.sizes}; expected (width, height) above 0 of as many anchors '
        f'on each of the {len(self.strides)} levels'
      )

  @property
  def per_cell(self) -> int:
    """Anchors of a cell."""
    return len(self.sizes[0])

  def cells(self) -> list[np.ndarray]:
    """The anchors of the first cell of every level, `[per_cell, 4]` each."""
    cells = []
    for stride, sizes in zip(self.strides, self.sizes, strict=True):
      half = np.asarray(sizes, self.dtype) / 2
      center = self.boxes.center_offset * stride
      cells.append(np.concatenate([center - half, center + half], axis=-1))
    return cells

  def of_input(self, size: Sequence[int]) -> 'AnchorGrid':
    """The anchors of an input of `size` = (height, width), whose maps are rounded up."""
    return AnchorGrid(self, _map_sizes(size, self.strides))


def _map_sizes(size: Sequence[int], strides: Sequence[int]) -> tuple[tuple[int, ...], ...]:
  return tuple(tuple(-(-side // stride) for side in size) for stride in strides)


@dataclasses.dataclass(frozen=True)
class AnchorGrid:
  """The anchors of one input: those of all levels in a row, in the order of `grid_anchors`.

  Attributes:
    anchors: of the detector.
    map_sizes: (height, width) of every level's map.
  """

  anchors: Anchors | SizedAnchors
  map_sizes: tuple[tuple[int, int], ...]

  @property
  def counts(self) -> tuple[int, ...]:
    """Anchors of every level."""
    return tuple(h * w * self.anchors.per_cell for h, w in self.map_sizes)

  @property
  def levels(self) -> tuple[slice, ...]:
    """Where every level's anchors are in the row."""
    ends = np.cumsum((0, *self.counts)).tolist()
    return tuple(slice(*ends[level : level + 2]) for level in range(len(self.counts)))

  def corners(self, dtype: jnp.dtype | None = None) -> jax.Array:
    """The anchors, `[anchors, 4]` in pixels of the input, in `dtype` or that of their cells."""
    dtype = dtype or self.anchors.dtype
    grids = [
      anchor_ops.grid_anchors(cell.astype(dtype), map_size, stride)
      for cell, map_size, stride in zip(
        self.anchors.cells(), self.map_sizes, self.anchors.strides, strict=True
      )
    ]
    return jnp.concatenate(grids)

  def valid(self, image_size: jax.Array) -> jax.Array:
    """Which anchors belong to cells that see the image, in an input that is padded.

    Args:
      image_size: (height, width) of the images in pixels, `[batch, 2]`.

    Returns:
      `[batch, anchors]` booleans.
    """
    spec, divisor = self.anchors, self.anchors.boxes.divisor
    padded = -(-image_size // divisor) * divisor

    def of_image(size: jax.Array) -> jax.Array:
      flags = [
        anchor_ops.valid_anchors(size, map_size, stride, spec.per_cell)
        for stride, map_size in zip(spec.strides, self.map_sizes, strict=True)
      ]
      return jnp.concatenate(flags)

    return jax.vmap(of_image)(padded)
