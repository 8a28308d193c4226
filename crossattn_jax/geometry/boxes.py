"""Boxes: their forms, their sizes, and how much they overlap.

A box is `[..., 4]`: x_min, y_min, x_max, y_max in pixels, its width `x_max - x_min`. Functions of
two boxes broadcast their leading dimensions: `iou(boxes, others)` compares row by row,
`iou(boxes[:, None], others)` all pairs. A side that would be negative counts as zero.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp


def to_center_size(boxes: jax.Array) -> jax.Array:
  """Corners `[..., 4]` as x_center, y_center, width, height.

  Examples:
    >>> to_center_size(jnp.array([10.0, 20.0, 30.0, 60.0])).tolist()
    [20.0, 40.0, 20.0, 40.0]
  """
  low, high = jnp.split(boxes, 2, axis=-1)
  return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def from_center_size(center_size: jax.Array) -> jax.Array:
  """Corners `[..., 4]` of boxes given as x_center, y_center, width, height."""
  center, size = jnp.split(center_size, 2, axis=-1)
  return jnp.concatenate([center - size / 2, center + size / 2], axis=-1)


def _extent(image_size: jax.Array | tuple[float, float], dtype: jnp.dtype) -> jax.Array:
  """Height and width `[..., 2]` as the farthest corners of a box: width, height, width, height."""
  height, width = jnp.unstack(jnp.asarray(image_size, dtype), axis=-1)
  return jnp.stack([width, height, width, height], axis=-1)


def normalize(boxes: jax.Array, image_size: jax.Array | tuple[float, float]) -> jax.Array:
  """Boxes in pixels as fractions of their image, `image_size` as in `clip`.

  Examples:
    >>> normalize(jnp.array([10.0, 20.0, 30.0, 60.0]), (100, 200)).tolist()
    [0.05..., 0.2..., 0.15..., 0.6...]
  """
  return boxes / _extent(image_size, boxes.dtype)


def denormalize(boxes: jax.Array, image_size: jax.Array | tuple[float, float]) -> jax.Array:
  """Fractions of an image as boxes in pixels, `image_size` as in `clip`."""
  return boxes * _extent(image_size, boxes.dtype)


def clip(boxes: jax.Array, image_size: jax.Array | tuple[float, float]) -> jax.Array:
  """Moves corners that lie outside their image onto its border.

  Args:
    boxes: `[..., 4]`, corners in pixels.
    image_size: height and width in pixels: two numbers for all boxes, or `[..., 2]`, whose leading
      dimensions broadcast against the boxes' (`[batch, 1, 2]` for `[batch, count, 4]`).

  Returns:
    The same shape.

  Examples:
    >>> clip(jnp.array([-5.0, 20.0, 250.0, 60.0]), (100, 200)).tolist()
    [0.0, 20.0, 200.0, 60.0]
  """
  return jnp.clip(boxes, 0, _extent(image_size, boxes.dtype))


def _above_zero(x: jax.Array) -> jax.Array:
  """The positive part, with a gradient of 1 at 0, where `jnp.maximum` has 0.5 and torch has 1."""
  return jnp.where(x < 0, 0, x)


def area(boxes: jax.Array) -> jax.Array:
  """Areas `[...]` in square pixels of boxes `[..., 4]`."""
  x_min, y_min, x_max, y_max = jnp.unstack(boxes, axis=-1)
  return _above_zero(x_max - x_min) * _above_zero(y_max - y_min)


def _intersection(boxes: jax.Array, others: jax.Array) -> jax.Array:
  """Areas `[...]` that two boxes share."""
  # Coordinate by coordinate: a table of all pairs of corners would be four times the result's size.
  x_min, y_min, x_max, y_max = jnp.unstack(boxes, axis=-1)
  other_x_min, other_y_min, other_x_max, other_y_max = jnp.unstack(others, axis=-1)
  width = jnp.minimum(x_max, other_x_max) - jnp.maximum(x_min, other_x_min)
  height = jnp.minimum(y_max, other_y_max) - jnp.maximum(y_min, other_y_min)
  return _above_zero(width) * _above_zero(height)


def _hull_sides(boxes: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Width and height `[...]` of the smallest box around two."""
  x_min, y_min, x_max, y_max = jnp.unstack(boxes, axis=-1)
  other_x_min, other_y_min, other_x_max, other_y_max = jnp.unstack(others, axis=-1)
  width = jnp.maximum(x_max, other_x_max) - jnp.minimum(x_min, other_x_min)
  height = jnp.maximum(y_max, other_y_max) - jnp.minimum(y_min, other_y_min)
  return _above_zero(width), _above_zero(height)


def iou(boxes: jax.Array, others: jax.Array, *, eps: float = 1e-6) -> jax.Array:
  """Intersection over union.

  Args:
    boxes: `[..., 4]`.
    others: `[..., 4]`, of leading dimensions that broadcast against those of `boxes`.
    eps: least denominator, in square pixels. Two boxes without area have an IoU of 0.

  Returns:
    `[...]` from 0 to 1.

  Examples:
    >>> boxes = jnp.array([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]])
    >>> iou(boxes[:, None], boxes).round(3).tolist()
    [[1.0, 0.333...], [0.333..., 1.0]]
  """
  shared = _intersection(boxes, others)
  return shared / jnp.maximum(area(boxes) + area(others) - shared, eps)


def giou(boxes: jax.Array, others: jax.Array, *, eps: float = 1e-6) -> jax.Array:
  """Generalized IoU: the IoU minus the share of the boxes' hull that neither covers.

  Source: Rezatofighi et al. 2019 (arXiv 1902.09630), algorithm 1.

  Arguments and shapes are those of `iou`; the result is between -1 and 1.
  """
  shared = _intersection(boxes, others)
  union = area(boxes) + area(others) - shared
  width, height = _hull_sides(boxes, others)
  hull = width * height
  return shared / jnp.maximum(union, eps) - (hull - union) / jnp.maximum(hull, eps)


def ciou(boxes: jax.Array, others: jax.Array, *, eps: float = 1e-7) -> jax.Array:
  """Complete IoU: the IoU minus penalties for the centres' distance and for other aspect ratios.

  Source: Zheng et al. 2020 (arXiv 1911.08287), equations 8 to 11. As in YOLOv5, `eps` is added to
  heights, union and squared diagonal, and the weight of the aspect ratio is a constant for the
  gradient. Value and gradients are finite for boxes without area too.

  Arguments and shapes are those of `iou`; the result is at most 1.
  """
  x_min, y_min, x_max, y_max = jnp.unstack(boxes, axis=-1)
  other_x_min, other_y_min, other_x_max, other_y_max = jnp.unstack(others, axis=-1)
  width, height = _above_zero(x_max - x_min), _above_zero(y_max - y_min) + eps
  other_width = _above_zero(other_x_max - other_x_min)
  other_height = _above_zero(other_y_max - other_y_min) + eps

  shared = _intersection(boxes, others)
  overlap = shared / (width * height + other_width * other_height - shared + eps)

  hull_width, hull_height = _hull_sides(boxes, others)
  x_distance = (x_min + x_max - other_x_min - other_x_max) / 2
  y_distance = (y_min + y_max - other_y_min - other_y_max) / 2
  distance = (x_distance**2 + y_distance**2) / (hull_width**2 + hull_height**2 + eps)

  turn = jnp.arctan2(other_width, other_height) - jnp.arctan2(width, height)
  aspect = 4 / math.pi**2 * turn**2
  weight = lax.stop_gradient(aspect / jnp.maximum(aspect - overlap + (1 + eps), eps))
  return overlap - distance - weight * aspect
