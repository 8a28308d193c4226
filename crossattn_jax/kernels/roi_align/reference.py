"""The definition of RoIAlign: every sample gathers the four cells around it."""

import jax
import jax.numpy as jnp

from crossattn_jax.geometry import roi_sampling


def roi_align(maps, boxes, levels, *, size, strides, sampling_ratio, aligned):
  """See `api.roi_align_pyramid`; `levels` `[batch, count]` says from which map a box is cut."""
  out = 0
  for level, (x, stride) in enumerate(zip(maps, strides, strict=True)):
    rows, columns = roi_sampling.axes(boxes, size, stride, sampling_ratio, aligned)
    samples = jnp.maximum(rows.samples * columns.samples, 1)[..., None, None, None]
    total = jax.vmap(_sums)(
      x,
      _positions(rows, size[0], x.shape[1], sampling_ratio),
      _positions(columns, size[1], x.shape[2], sampling_ratio),
    )
    out += jnp.where((levels == level)[..., None, None, None], total / samples, 0)
  return out.astype(maps[0].dtype)


def _positions(axis, bins, length, ratio):
  """Positions of samples `[batch, count, bins, samples]`, NaN where there is none on the map."""
  axis = roi_sampling.Axis(*(x[..., None, None] for x in axis))
  first = axis.start + jnp.arange(bins)[:, None] * axis.size
  spacing = jnp.where(axis.size > 0, axis.size / jnp.maximum(axis.samples, 1), 1)
  # Adaptive samples are more than half a cell apart, or there is one. From the first on the map on:
  index = jnp.arange(ratio or 2 * length + 6)
  if not ratio:
    index += jnp.maximum(jnp.floor((-1 - first) / spacing - 0.5), 0)
  at = first + (index + 0.5) * spacing
  return jnp.where((at >= -1) & (at <= length) & (index < axis.samples), at, jnp.nan)


def _sums(x, rows, columns):
  """Sums of the samples of bins `[count, rows, columns, channels]` of one image."""
  total = 0
  for row, row_weight in _neighbours(rows, x.shape[0]):
    for column, column_weight in _neighbours(columns, x.shape[1]):
      cells = x[row[:, :, :, None, None], column[:, None, None]]
      weight = row_weight[:, :, :, None, None] * column_weight[:, None, None]
      total += jnp.einsum('npiqjc,npiqj->npqc', cells, weight)
  return total


def _neighbours(at, length):
  """The two cells between which a sample lies, and their weights."""
  counts, at = ~jnp.isnan(at), jnp.clip(jnp.nan_to_num(at), 0, length - 1)
  low = jnp.minimum(jnp.floor(at), length - 2) if length > 1 else jnp.zeros_like(at)
  upper = at - low
  for cell, weight in ((low, 1 - upper), (low + 1, upper)):
    yield jnp.minimum(cell, length - 1).astype(jnp.int32), jnp.where(counts, weight, 0)
