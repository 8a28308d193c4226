"""Anchors: boxes of fixed sizes and shapes at every cell of a feature map.

Source: Faster R-CNN, Ren et al. 2015 (arXiv 1506.01497), section 3.1.1; conventions of mmdetection.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def octave_scales(base: float, per_octave: int) -> tuple[float, ...]:
  """RetinaNet's scales: `per_octave` of them from `base` to, not including, twice as much."""
  return tuple(base * 2 ** (step / per_octave) for step in range(per_octave))


def cell_anchors(
  size: float,
  scales: Sequence[float],
  ratios: Sequence[float],
  *,
  center_offset: float = 0.0,
  inclusive: bool = False,
  dtype: np.dtype = np.float32,
) -> np.ndarray:
  """The anchors of the cell in a map's corner, whose upper left corner is the image's.

  Args:
    size: side in pixels of the square anchor of scale 1; mostly the map's stride.
    scales: factors of both sides.
    ratios: heights over widths; the area does not depend on them.
    center_offset: of the anchors' centres from the cell's upper left corner, in units of `size`.
    inclusive: the corner x_max, y_max is the last pixel inside, so that widths are
      `x_max - x_min + 1`, and corners are whole pixels, as in mmdetection 1.
    dtype: of the computation and of the result.

  Returns:
    `[ratios * scales, 4]` corners in pixels; scales change fastest.
  """
  size, scales, ratios = (np.asarray(given, dtype) for given in (size, scales, ratios))
  heights = np.sqrt(ratios)
  sides = np.stack([1 / heights, heights], axis=-1)  # Of every ratio: width, height.
  sides = (size * sides[:, None] * scales[:, None]).reshape(-1, 2)
  center = np.asarray(center_offset, dtype) * (size - int(inclusive))
  half = (sides - int(inclusive)) / 2
  anchors = np.concatenate([center - half, center + half], axis=-1)
  return np.round(anchors) if inclusive else anchors


def grid_anchors(cell: np.ndarray | jax.Array, map_size: tuple[int, int], stride: int) -> jax.Array:
  """The anchors of all cells of a feature map.

  Args:
    cell: `[count, 4]`, what `cell_anchors` returns.
    map_size: height and width of the map.
    stride: pixels of the image per cell.

  Returns:
    `[height * width * count, 4]` corners in pixels and in the dtype of `cell`: rows slowest, then
    columns, then the anchors of a cell. So a head's map `[height, width, count * channels]` is
    reshaped to `[-1, channels]`.

  Examples:
    >>> cell = cell_anchors(size=16, scales=(2,), ratios=(1,))
    >>> grid_anchors(cell, map_size=(1, 2), stride=16).tolist()
    [[-16.0, -16.0, 16.0, 16.0], [0.0, -16.0, 32.0, 16.0]]
  """
  cell = jnp.asarray(cell)
  height, width = (jnp.arange(count, dtype=cell.dtype) * stride for count in map_size)
  y, x = jnp.meshgrid(height, width, indexing='ij')
  shifts = jnp.stack([x, y, x, y], axis=-1)
  return (shifts[:, :, None] + cell).reshape(-1, 4)


def valid_anchors(
  image_size: jax.Array | tuple[int, int],
  map_size: tuple[int, int],
  stride: int,
  count: int,
) -> jax.Array:
  """Which anchors belong to cells that see the image, where a batch is padded to its largest.

  Args:
    image_size: height and width of the image in pixels, `[2]` or two numbers. mmdetection takes the
      size that an image has after it was padded to a multiple of 32.
    map_size: height and width of the map of the padded batch.
    stride: pixels of the image per cell.
    count: anchors of a cell.

  Returns:
    `[height * width * count]` booleans, in the order of `grid_anchors`.
  """
  height, width = jnp.unstack(-(-jnp.asarray(image_size) // stride))
  rows, columns = (jnp.arange(length) for length in map_size)
  inside = (rows < height)[:, None] & (columns < width)
  return jnp.repeat(inside.reshape(-1), count)
