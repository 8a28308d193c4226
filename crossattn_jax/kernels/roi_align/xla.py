"""RoIAlign as two products a box, with the window of its map that the box touches.

Boxes are sorted by level and by the window that they need: a loop for each has static shapes, reads
its windows where they lie, and in the gradient adds to them there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from crossattn_jax.geometry import roi_sampling

# Sides of windows, in cells; boxes larger than these take the whole map.
WINDOWS = (16, 32, 64)


def roi_align(maps, boxes, levels, *, size, **options):
  """See `api.roi_align_pyramid`; `levels` `[batch, count]` says from which map a box is cut."""
  channels, dtype = maps[0].shape[-1], maps[0].dtype

  def align(level, box, window, rows, columns, out):
    cells = lax.dynamic_slice(maps[level], *window)[0].astype(rows.dtype)
    height, width, _ = cells.shape
    half = (rows @ cells.reshape(height, -1)).reshape(size[0], width, channels)
    bins = jnp.einsum('qw,pwc->pqc', columns, half)
    return lax.dynamic_update_slice_in_dim(out, bins[None].astype(dtype), box, axis=0)

  out = jnp.zeros((boxes.shape[0] * boxes.shape[1], *size, channels), dtype)
  out = _for_boxes(align, out, maps, boxes, levels, size=size, **options)
  return out.reshape(*boxes.shape[:2], *size, channels)


def roi_align_vjp(cotangent, maps, boxes, levels, *, size, **options):
  """The gradients of the maps."""
  channels = maps[0].shape[-1]
  cotangent = cotangent.reshape(-1, *size, channels)

  def align(level, box, window, rows, columns, gradients):
    bins = lax.dynamic_index_in_dim(cotangent, box, keepdims=False).astype(rows.dtype)
    half = jnp.einsum('qw,pqc->pwc', columns, bins)
    cells = (rows.T @ half.reshape(size[0], -1)).reshape(window[1])
    start, shape = window
    gradient = gradients[level]
    cells += lax.dynamic_slice(gradient, start, shape)
    gradient = lax.dynamic_update_slice(gradient, cells, start)
    return [*gradients[:level], gradient, *gradients[level + 1 :]]

  sums = [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in maps]
  sums = _for_boxes(align, sums, maps, boxes, levels, size=size, **options)
  return [gradient.astype(x.dtype) for gradient, x in zip(sums, maps, strict=True)]


def _for_boxes(
  function: Callable[..., Any],
  carry: Any,
  maps: Sequence[jax.Array],
  boxes: jax.Array,
  levels: jax.Array,
  *,
  size: tuple[int, int],
  strides: Sequence[float],
  sampling_ratio: int,
  aligned: bool,
) -> Any:
  """Calls a function for box after box.

  Args:
    function: of the level, the number of the box in the batch, the start and the shape of its
      window, the matrices of rows `[bins, rows]` and columns `[bins, columns]` of the window, and
      what it returned for the box before.
    carry: the first one's.
    maps: see `roi_align`, as all others.
    boxes: all boxes.
    levels: of the boxes.
    size: bins.
    strides: of the levels.
    sampling_ratio: see `api.roi_align`.
    aligned: see `api.roi_align`.

  Returns:
    What it returned last.
  """
  count, levels, boxes = boxes.shape[1], levels.reshape(-1), boxes.reshape(-1, 4)
  strides, lengths = jnp.asarray(strides, boxes.dtype), jnp.asarray([x.shape[1:3] for x in maps])
  axes = roi_sampling.axes(boxes, size, strides[levels], sampling_ratio, aligned)
  firsts, reaches = zip(
    *(
      roi_sampling.reach(axis, bins, lengths[levels, i])
      for i, (axis, bins) in enumerate(zip(axes, size, strict=True))
    ),
    strict=True,
  )
  samples = jnp.maximum(axes[0].samples * axes[1].samples, 1)
  kinds = len(WINDOWS) + 1
  kind = levels * kinds + jnp.searchsorted(jnp.array(WINDOWS), jnp.maximum(*reaches))
  order = jnp.argsort(kind).astype(jnp.int32)
  starts = jnp.sum(kind[:, None] < jnp.arange(len(maps) * kinds + 1), axis=0, dtype=jnp.int32)

  def loop(level: int, sides: tuple[int, int], first: jax.Array, last: jax.Array, carry: Any):
    lengths = maps[level].shape[1:3]

    def step(i, carry):
      box = order[i]
      corner, matrices = [], []
      for axis, bins, length, side, start in zip(axes, size, lengths, sides, firsts, strict=True):
        corner.append(jnp.minimum(start[box], length - side))
        numbers = jnp.arange(bins, dtype=boxes.dtype)[:, None]
        cells = (corner[-1] + jnp.arange(side)).astype(boxes.dtype)
        axis = roi_sampling.Axis(*(x[box] for x in axis))
        weights = roi_sampling.weights(axis, numbers, cells, length, sampling_ratio)
        matrices.append(weights.astype(jnp.promote_types(maps[level].dtype, jnp.float32)))
      rows, columns = matrices
      window = (box // count, *corner, jnp.int32(0)), (1, *sides, maps[level].shape[3])
      return function(level, box, window, rows / samples[box].astype(rows.dtype), columns, carry)

    return lax.fori_loop(first, last, step, carry)

  for level, x in enumerate(maps):
    height, width = x.shape[1:3]
    for k, side in enumerate((*WINDOWS, max(height, width))):
      if k == 0 or max(height, width) > WINDOWS[k - 1]:
        sides, number = (min(side, height), min(side, width)), level * kinds + k
        carry = loop(level, sides, starts[number], starts[number + 1], carry)
  return carry
