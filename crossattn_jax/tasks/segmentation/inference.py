"""How a network that labels maps labels images of any size: tiles, scales, mirror images.

Source: the evaluation of CCNet (speedinghzl/CCNet, evaluate.py).
"""

from collections.abc import Callable, Sequence
import math

import jax
import jax.numpy as jnp

from crossattn_jax.layers import resize

# `[batch, height, width, bands]` -> logits `[batch, rows, columns, classes]` at any stride.
Predict = Callable[[jax.Array], jax.Array]


def tile_stride(tile: int, overlap: float = 1 / 3) -> int:
  """Distance of the tiles of one axis."""
  return math.ceil(tile * (1 - overlap))


def tile_starts(size: int, tile: int, stride: int) -> list[int]:
  """Where the tiles of one axis start; the last one ends where the image does."""
  number = max(math.ceil((size - tile) / stride) + 1, 1)
  return [max(min(i * stride + tile, size) - tile, 0) for i in range(number)]


def sliding_window(
  predict: Predict,
  images: jax.Array,
  tile: tuple[int, int],
  *,
  overlap: float = 1 / 3,
  align_corners: bool = True,
  sizes: jax.Array | None = None,
) -> jax.Array:
  """Predicts tile by tile and averages where tiles overlap.

  One tile per image is in memory at a time, whatever the size of the images. Their true sizes may
  be arguments of the compiled program: then it serves all sizes up to that of the arrays, with the
  result that each image would have alone.

  Args:
    predict: the network.
    images: `[batch, height, width, bands]`, zero outside of each image.
    tile: (height, width).
    overlap: of neighbouring tiles. As in the original, the height of the tile gives their distance
      along both axes.
    align_corners: how logits are resized to the tile.
    sizes: (height, width) of each image, integers `[batch, 2]`; by default that of the arrays.

  Returns:
    Scores `[batch, height, width, classes]`; meaningless outside of each image.
  """
  batch, height, width, bands = images.shape
  stride = tile_stride(tile[0], overlap)
  if sizes is None:
    sizes = jnp.tile(jnp.asarray([height, width], jnp.int32), (batch, 1))
  sizes = sizes.astype(jnp.int32)
  canvas = (max(height, tile[0]), max(width, tile[1]))
  images = jnp.pad(images, ((0, 0), (0, canvas[0] - height), (0, canvas[1] - width), (0, 0)))
  lengths = jnp.asarray(tile, jnp.int32)
  numbers = jnp.maximum(-((lengths - sizes) // stride) + 1, 1)
  most = [len(tile_starts(*axis, stride)) for axis in zip(canvas, tile, strict=True)]

  def add_tile(sums, index):
    place = jnp.stack([index // most[1], index % most[1]])
    used = jnp.all(place < numbers, axis=-1)
    starts = jnp.maximum(jnp.minimum(place * stride + lengths, sizes) - lengths, 0)
    cut = jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, (*start, 0), (*tile, bands)))
    logits = resize.resize(predict(cut(images, starts)), tile, 'bilinear', align_corners)

    def add(total, count, logits, start, used):
      at = (*start, 0)
      here = jax.lax.dynamic_slice(total, at, logits.shape) + jnp.where(used, logits, 0)
      covered = jax.lax.dynamic_slice(count, start, tile) + used
      return (
        jax.lax.dynamic_update_slice(total, here, at),
        jax.lax.dynamic_update_slice(count, covered, start),
      )

    return jax.vmap(add)(*sums, logits, starts, used), None

  logits = jax.eval_shape(predict, jax.ShapeDtypeStruct((batch, *tile, bands), images.dtype))
  zeros = jnp.zeros((batch, *canvas, logits.shape[-1]), logits.dtype)
  (total, count), _ = jax.lax.scan(
    add_tile, (zeros, jnp.zeros((batch, *canvas), jnp.int32)), jnp.arange(most[0] * most[1])
  )
  scores = total / jnp.maximum(count, 1)[..., None].astype(total.dtype)
  return scores[:, :height, :width]


def zoomed_size(size: Sequence[int], scale: float) -> tuple[int, int]:
  """(height, width) after zooming, halves rounded to even."""
  return round(size[0] * scale), round(size[1] * scale)


def multi_scale(
  predict: Predict,
  images: jax.Array,
  *,
  scales: Sequence[float] = (1.0,),
  flip: bool = False,
  align_corners: bool = True,
  probabilities: bool = False,
) -> jax.Array:
  """Averages the predictions for whole images of several sizes and for their mirror images.

  Args:
    predict: the network, for images of any size.
    images: `[batch, height, width, bands]`.
    scales: of the images.
    flip: whether images are mirrored left to right as well.
    align_corners: how images and logits are resized. Where corners are aligned images are zoomed as
      by SciPy, whose rounding leaves the last row or column 0 at some sizes (CCNet).
    probabilities: whether probabilities are averaged (mmsegmentation), rather than logits (CCNet).

  Returns:
    Scores `[batch, height, width, classes]`.
  """
  size = images.shape[1:3]

  def scores(image: jax.Array) -> jax.Array:
    logits = resize.resize(predict(image), size, 'bilinear', align_corners)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jax.nn.softmax(logits, axis=-1) if probabilities else logits

  total = 0
  for scale in scales:
    size_of_scale = zoomed_size(size, scale)
    zoomed = resize.resize(images, size_of_scale, 'bilinear', align_corners)
    if align_corners:
      zoomed *= resize.reached_by_zoom(size, size_of_scale)[..., None]
    result = scores(zoomed)
    if flip:
      result = 0.5 * (result + scores(zoomed[:, :, ::-1])[:, :, ::-1])
    total += result
  return total / len(scales)
