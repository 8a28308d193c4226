"""RoIAlign as products with interpolation matrices."""

import jax.numpy as jnp

from crossattn_jax.geometry import roi_sampling


def roi_align(maps, boxes, levels, *, size, strides, sampling_ratio, aligned):
  """See `api.roi_align_pyramid`; `levels` `[batch, count]` says which map a box is cut from."""
  out = 0
  for level, (x, stride) in enumerate(zip(maps, strides, strict=True)):
    rows, columns, samples = roi_sampling.matrices(
      boxes, size, x.shape[1:3], stride, sampling_ratio, aligned
    )
    rows = jnp.where((levels == level)[..., None, None], rows / samples[..., None, None], 0)
    out += jnp.einsum('bnph,bnqw,bhwc->bnpqc', rows.astype(x.dtype), columns.astype(x.dtype), x)
  return out
