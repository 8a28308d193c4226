"""Where RoIAlign samples a map, and how much every cell of the map weighs in a bin.

A bin is the mean of bilinear samples on a regular grid, and a bilinear sample is a product of two
hat functions, one an axis. So a bin is `rows @ map @ columns^T`: no cell is ever gathered, and the
number of samples may depend on the box.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# A box with more than one adaptive sample a bin has them more than half a cell apart: at most four
# are less than a cell away from any cell. Two more, for the rounding of the first one's index.
NEAR = 6


class Axis(NamedTuple):
  """The samples of boxes along one axis, in cells of the map.

  Attributes:
    start: `[...]`, where the first bin begins; cell i lies at i.
    size: `[...]` of a bin.
    samples: `[...]` a bin, a whole number, 0 for a box without extent.
  """

  start: jax.Array
  size: jax.Array
  samples: jax.Array


def axes(
  boxes: jax.Array,
  bins: tuple[int, int],
  stride: float,
  sampling_ratio: int,
  aligned: bool,
) -> tuple[Axis, Axis]:
  """The samples along rows and along columns of boxes `[..., 4]`, see `kernels.roi_align`."""
  scale = 1 / stride
  x_min, y_min, x_max, y_max = jnp.unstack(boxes, axis=-1)

  def axis(low: jax.Array, high: jax.Array, count: int) -> Axis:
    start, stop = low * scale, high * scale
    extent = stop - start
    if aligned:
      start = start - 0.5
    else:
      extent = jnp.maximum(extent, 1)
    size = extent / count
    adaptive = jnp.maximum(jnp.ceil(size), 0)
    return Axis(start, size, jnp.full_like(size, sampling_ratio) if sampling_ratio else adaptive)

  return axis(y_min, y_max, bins[0]), axis(x_min, x_max, bins[1])


def weights(axis: Axis, bins: jax.Array, cells: jax.Array, length: int, ratio: int) -> jax.Array:
  """The sums of hat functions: how much each cell weighs in each bin, times the samples.

  Args:
    axis: of boxes.
    bins: their numbers; broadcasts against `axis` and `cells`.
    cells: their numbers; likewise.
    length: cells of the map along the axis. Samples more than a cell outside are zero, others
      outside have the value of the nearest cell.
    ratio: the number of samples where it is known; 0 where it depends on the box.
  """
  first = axis.start + bins * axis.size
  samples = jnp.maximum(axis.samples, 1)
  if ratio:
    index = 0
  else:
    spacing = jnp.where(axis.size > 0, axis.size / samples, 1)
    index = jnp.maximum(jnp.floor((cells - 1 - first) / spacing - 0.5), 0)
  total = 0
  for i in range(ratio or NEAR):
    at = first + (index + i + 0.5) * axis.size / samples
    hat = jnp.maximum(1 - jnp.abs(jnp.clip(at, 0, length - 1) - cells), 0)
    counts = (at >= -1) & (at <= length) & (index + i < axis.samples)
    total += jnp.where(counts, hat, 0)
  return total


def reach(axis: Axis, bins: int, length: int | jax.Array) -> tuple[jax.Array, jax.Array]:
  """The cells that have a weight in any bin: the first one, and how many (or a few more) there are.

  Args:
    axis: of boxes.
    bins: of a box.
    length: cells of the map along the axis; broadcasts against `axis`.

  Returns:
    Two int32 `[...]`. The number is 0 for boxes without a sample on the map.
  """
  stop = axis.start + bins * axis.size
  first, last = (
    jnp.clip(jnp.floor(at), 0, length - 1).astype(jnp.int32) for at in (axis.start, stop + 1)
  )
  there = (axis.samples > 0) & (stop >= -1) & (axis.start <= length)
  return first, jnp.where(there, last - first + 1, 0)


def matrices(
  boxes: jax.Array,
  bins: tuple[int, int],
  map_size: tuple[int, int],
  stride: float = 1,
  sampling_ratio: int = 0,
  aligned: bool = True,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The matrices whose product with a map is RoIAlign; arguments are those of `kernels.roi_align`.

  Returns:
    Rows `[..., bins, height]`, columns `[..., bins, width]`, and the number of samples `[...]` by
    which `rows @ map @ columns^T` is to be divided.
  """
  both = axes(boxes, bins, stride, sampling_ratio, aligned)
  rows, columns = (
    weights(
      Axis(*(x[..., None, None] for x in axis)),
      jnp.arange(count, dtype=boxes.dtype)[:, None],
      jnp.arange(length, dtype=boxes.dtype),
      length,
      sampling_ratio,
    )
    for axis, count, length in zip(both, bins, map_size, strict=True)
  )
  return rows, columns, jnp.maximum(both[0].samples * both[1].samples, 1)
