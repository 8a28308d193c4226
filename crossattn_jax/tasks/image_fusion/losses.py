"""Losses of image fusion: gradients of both images, and their intensities segment by segment.

Source: the code of ATFuse (docs/atfuse.md). Images are luma in 0..255.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

# (share of the pixels, what they should be), the most salient first.
Segments = Sequence[tuple[float, str]]
SEGMENTS = ((0.2, 'maximum'), (0.8, 'average'))
TARGETS = ('maximum', 'minimum', 'average', 'visible', 'infrared')


class FusionLoss(NamedTuple):
  """Terms of the loss, each `[batch]`.

  Attributes:
    total: their weighted sum.
    gradient: how far the gradients are from the larger ones of both images.
    intensity: how far the pixels are from what their segments want.
  """

  total: jax.Array
  gradient: jax.Array
  intensity: jax.Array


def gradient_strength(image: jax.Array) -> jax.Array:
  """|Sobel in x| + |Sobel in y|, zeros around the image.

  Args:
    image: `[batch, height, width, 1]`.

  Returns:
    Of the same shape, in at least float32.
  """
  image = image.astype(jnp.promote_types(image.dtype, jnp.float32))
  padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
  down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
  across = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
  return jnp.abs(down[:, :, 2:] - down[:, :, :-2]) + jnp.abs(across[:, :-2] - across[:, 2:])


def salient(image: jax.Array, share: float, inside: jax.Array | None = None) -> jax.Array:
  """The pixels of which intensity times gradient is among the largest of their image.

  Args:
    image: `[batch, height, width, 1]`.
    share: of the pixels, in (0, 1]. Equal values are all in or all out: of a flat image every pixel
      is salient.
    inside: bool, of the image's shape: False beyond the image. None: it fills its array.

  Returns:
    bool, of the same shape.
  """
  scores = image * gradient_strength(image)
  flat = scores.reshape(scores.shape[0], -1)
  left = jnp.float32(1 - share)
  if inside is None:
    counts = jnp.full((scores.shape[0],), flat.shape[1])
  else:
    flat = jnp.where(inside.reshape(flat.shape), flat, jnp.inf)
    counts = inside.reshape(flat.shape).sum(axis=1)
  rank = jnp.round(left * counts.astype(jnp.float32)).astype(jnp.int32)
  rank = jnp.clip(rank - 1, 0, flat.shape[1] - 1)
  threshold = jnp.take_along_axis(jnp.sort(flat, axis=1), rank[:, None], axis=1)
  return scores >= threshold[..., None, None]


def segment_masks(
  visible: jax.Array, infrared: jax.Array, shares: Sequence[float], inside: jax.Array | None = None
) -> list[jax.Array]:
  """Divides the pixels into segments, the most salient of either image first.

  Args:
    visible: `[batch, height, width, 1]`.
    infrared: the same.
    shares: of each image's pixels; the last segment takes what is left.
    inside: see `salient`.

  Returns:
    bool masks of the images' shape; each pixel is in one.
  """
  masks, taken, total = [], jnp.zeros(visible.shape, bool), 0.0
  for share in shares[:-1]:
    total += share
    union = salient(visible, total, inside) | salient(infrared, total, inside)
    masks.append(union & ~taken)
    taken |= union
  return [*masks, ~taken]


def fusion_loss(
  fused: jax.Array,
  visible: jax.Array,
  infrared: jax.Array,
  *,
  segments: Segments = SEGMENTS,
  gradient_weight: float = 20.0,
  intensity_weight: float = 20.0,
  size: jax.Array | None = None,
) -> FusionLoss:
  """The loss of ATFuse.

  Args:
    fused: `[batch, height, width, 1]`.
    visible: the same.
    infrared: the same.
    segments: (share, target) of each, the most salient first. Targets: 'maximum' and 'minimum' of
      both images, 'visible', 'infrared', or 'average', the mean of the distances to both.
    gradient_weight: of the first term.
    intensity_weight: of the second term.
    size: (height, width) of each image, int32 `[batch, 2]`, where they are smaller than their
      arrays.

  Returns:
    The terms of each image, means over its pixels.
  """
  visible, infrared = jax.lax.stop_gradient((visible, infrared))
  inside = None
  if size is not None:
    rows = jnp.arange(fused.shape[1]) < size[:, :1]
    columns = jnp.arange(fused.shape[2]) < size[:, 1:]
    inside = (rows[:, :, None] & columns[:, None, :])[..., None]
    fused, visible, infrared = (jnp.where(inside, x, 0) for x in (fused, visible, infrared))

  def mean(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x.mean(axis=(1, 2, 3)) if inside is None else x.mean(axis=(1, 2, 3), where=inside)

  strongest = jnp.maximum(gradient_strength(visible), gradient_strength(infrared))
  gradient = mean(jnp.abs(gradient_strength(fused) - strongest))
  distances = {
    'maximum': jnp.abs(jnp.maximum(visible, infrared) - fused),
    'minimum': jnp.abs(jnp.minimum(visible, infrared) - fused),
    'visible': jnp.abs(visible - fused),
    'infrared': jnp.abs(infrared - fused),
  }
  distances['average'] = 0.5 * distances['visible'] + 0.5 * distances['infrared']
  masks = segment_masks(visible, infrared, [share for share, _ in segments], inside)
  intensity = sum(
    mean(jnp.where(mask, distances[target], 0))
    for mask, (_, target) in zip(masks, segments, strict=True)
  )
  return FusionLoss(gradient_weight * gradient + intensity_weight * intensity, gradient, intensity)


def masked_intensity_loss(
  fused: jax.Array,
  visible: jax.Array,
  infrared: jax.Array,
  visible_mask: jax.Array,
  infrared_mask: jax.Array,
) -> jax.Array:
  """Distances to each image where its mask is 1; the original has it and does not train with it.

  Args:
    fused: `[batch, height, width, 1]`.
    visible: the same.
    infrared: the same.
    visible_mask: the same, 0 or 1.
    infrared_mask: the same, 0 or 1.

  Returns:
    The sum of both means over all pixels, a scalar.
  """
  return sum(
    jnp.abs(fused * mask - image * mask).mean()
    for image, mask in ((visible, visible_mask), (infrared, infrared_mask))
  )
