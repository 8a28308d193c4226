"""Boxes as offsets from reference boxes (anchors, proposals): what networks regress.

Source: Faster R-CNN, Ren et al. 2015 (arXiv 1506.01497), equation 2; conventions of mmdetection.
"""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp

from crossattn_jax.geometry import boxes as box_ops


def _center_size(boxes: jax.Array, inclusive: bool) -> tuple[jax.Array, jax.Array]:
  """Centres and sizes, `[..., 2]` each."""
  center, size = jnp.split(box_ops.to_center_size(boxes), 2, axis=-1)
  return center, size + int(inclusive)


def encode(
  references: jax.Array,
  targets: jax.Array,
  *,
  means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
  stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
  inclusive: bool = False,
  eps: float = 1e-6,
) -> jax.Array:
  """Expresses boxes relative to reference boxes: Faster R-CNN's equation 2.

  Args:
    references: `[..., 4]`, corners in pixels.
    targets: `[..., 4]`, of leading dimensions that broadcast against those of `references`.
    means: subtracted from dx, dy, dw, dh.
    stds: dx, dy, dw, dh are divided by them afterwards.
    inclusive: the corner x_max, y_max is the last pixel inside, so that widths are
      `x_max - x_min + 1`, as in mmdetection 1 and Detectron; else widths are `x_max - x_min`.
    eps: least width and height in pixels, so that boxes without area, as padding has, stay finite.

  Returns:
    `[..., 4]`: shift of the centre in units of the reference's size, logarithm of the sizes' ratio.
  """
  center, size = _center_size(references, inclusive)
  target_center, target_size = _center_size(targets, inclusive)
  size, target_size = jnp.maximum(size, eps), jnp.maximum(target_size, eps)
  deltas = jnp.concatenate([(target_center - center) / size, jnp.log(target_size / size)], axis=-1)
  return (deltas - jnp.asarray(means, deltas.dtype)) / jnp.asarray(stds, deltas.dtype)


def decode(
  references: jax.Array,
  deltas: jax.Array,
  *,
  means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
  stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
  image_size: jax.Array | tuple[float, float] | None = None,
  wh_ratio_clip: float | None = 16 / 1000,
  inclusive: bool = False,
) -> jax.Array:
  """The boxes that offsets from reference boxes describe: the inverse of `encode`.

  Args:
    references: `[..., 4]`, corners in pixels. For a box per class, `[..., 1, 4]`.
    deltas: `[..., 4]`, of leading dimensions that broadcast against those of `references`.
    means: those of `encode`.
    stds: those of `encode`.
    image_size: height and width as in `boxes.clip`: corners are clamped into the image. None leaves
      them where they are.
    wh_ratio_clip: a box is at most `1 / wh_ratio_clip` times as wide and high as its reference, at
      least `wh_ratio_clip` times; None for no limit.
    inclusive: as in `encode`; corners are clamped to the last pixel. mmdetection's own coder for
      models of version 1 leaves both corners half a pixel further out.

  Returns:
    `[..., 4]`, corners in pixels.

  Examples:
    >>> anchors = jnp.array([[0.0, 0.0, 16.0, 16.0]])
    >>> decode(anchors, encode(anchors, jnp.array([[4.0, 4.0, 20.0, 20.0]]))).round(2).tolist()
    [[4.0, 4.0, 20.0, 20.0]]
  """
  deltas = deltas * jnp.asarray(stds, deltas.dtype) + jnp.asarray(means, deltas.dtype)
  shift, log_ratio = jnp.split(deltas, 2, axis=-1)
  if wh_ratio_clip is not None:
    limit = abs(math.log(wh_ratio_clip))
    log_ratio = jnp.clip(log_ratio, -limit, limit)
  center, size = _center_size(references, inclusive)
  size, center = size * jnp.exp(log_ratio), center + size * shift
  corners = box_ops.from_center_size(jnp.concatenate([center, size - int(inclusive)], axis=-1))
  if image_size is None:
    return corners
  return box_ops.clip(corners, jnp.asarray(image_size) - int(inclusive))
