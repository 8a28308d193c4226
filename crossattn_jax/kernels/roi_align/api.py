"""The public functions of RoIAlign: checks, levels of a pyramid."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from crossattn_jax.kernels.roi_align import xla


def roi_align(
  maps: jax.Array,
  boxes: jax.Array,
  *,
  size: int | tuple[int, int],
  stride: float = 1,
  sampling_ratio: int = 0,
  aligned: bool = True,
) -> jax.Array:
  """Resamples a map within boxes: a box is cut into bins, a bin is a mean of bilinear samples.

  Source: Mask R-CNN, He et al. 2017 (arXiv 1703.06870), section 3. Samples more than a cell outside
  the map count as 0, others outside have the value of the nearest cell.

  Args:
    maps: `[batch, height, width, channels]`, floating.
    boxes: `[batch, count, 4]`, corners in pixels of the network's input. They have no gradient.
    size: bins of a box, or their rows and columns.
    stride: pixels of the input per cell of the map.
    sampling_ratio: samples of a bin, in both directions; 0 for one per cell that a bin is long,
      rounded up.
    aligned: whether pixels lie at half numbers (the originals' `aligned=True`). Else everything is
      half a cell off, and boxes are at least a cell long, as in detectors before 2019.

  Returns:
    `[batch, count, rows, columns, channels]` in `maps`' dtype. Boxes without extent give 0 where
    they are aligned and the sampling ratio is 0.
  """
  return roi_align_pyramid(
    [maps], boxes, size=size, strides=[stride], sampling_ratio=sampling_ratio, aligned=aligned
  )


def roi_align_pyramid(
  maps: Sequence[jax.Array],
  boxes: jax.Array,
  *,
  size: int | tuple[int, int],
  strides: Sequence[float],
  finest_scale: float = 56,
  sampling_ratio: int = 0,
  aligned: bool = True,
) -> jax.Array:
  """`roi_align` of every box from the level of a pyramid that fits its size, see `level_of`.

  Args:
    maps: `[batch, height, width, channels]` of every level, the finest first.
    boxes: `[batch, count, 4]`, corners in pixels of the network's input. They have no gradient.
    size: bins of a box, or their rows and columns.
    strides: pixels of the input per cell of each map.
    finest_scale: see `level_of`.
    sampling_ratio: see `roi_align`.
    aligned: see `roi_align`.

  Returns:
    `[batch, count, rows, columns, channels]` in the maps' dtype.
  """
  size = (size, size) if isinstance(size, int) else tuple(size)
  boxes = jax.lax.stop_gradient(boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32)))
  levels = level_of(boxes, len(maps), finest_scale)
  return xla.roi_align(
    maps,
    boxes,
    levels,
    size=size,
    strides=strides,
    sampling_ratio=sampling_ratio,
    aligned=aligned,
  )


def level_of(boxes: jax.Array, count: int, finest_scale: float = 56) -> jax.Array:
  """The level of a pyramid from which a box is cut, 0 for the finest.

  Source: Feature Pyramid Networks, Lin et al. 2017 (arXiv 1612.03144), equation 1.

  Args:
    boxes: `[..., 4]`, corners in pixels.
    count: of levels.
    finest_scale: boxes of an area of at least this, squared, times 4^level are of a level or above.

  Returns:
    `[...]` int32 from 0 to `count - 1`.
  """
  x_min, y_min, x_max, y_max = jnp.unstack(boxes, axis=-1)
  scale = jnp.sqrt((x_max - x_min) * (y_max - y_min))
  level = jnp.floor(jnp.log2(scale / finest_scale + 1e-6))
  return jnp.clip(level, 0, count - 1).astype(jnp.int32)
