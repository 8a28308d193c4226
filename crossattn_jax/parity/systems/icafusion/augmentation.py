"""Cases of the augmentation of pairs, where what is random is given."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from crossattn_jax.data.paired_detection import augmentation, placement
from crossattn_jax.geometry import boxes as boxes_lib
from crossattn_jax.parity import adapters

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


@adapters.register_adapter('icafusion', 'aug_hsv')
def _hsv(manifest: Manifest) -> adapters.Adapter:
  gains = 1 + np.asarray(manifest['constructor']['gains_minus_one'])

  def run(img: jax.Array) -> Arrays:
    pixels = np.asarray(img, np.uint8)[..., ::-1]  # The original's channels are BGR.
    return {'img': _numbers(augmentation.jitter_color(pixels, gains)[..., ::-1])}

  return adapters.function_adapter(run)


@adapters.register_adapter('icafusion', 'aug_letterbox')
def _letterbox(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  canvas, options = tuple(c['new_shape']), {'enlarge': c['scaleup'], 'fill': tuple(c['color'])}

  def run(img: jax.Array, lab: jax.Array) -> Arrays:
    letterbox = placement.Letterbox(img.shape[:2], canvas, **options)
    boxes = letterbox.boxes(_corners(lab, img.shape[:2]))
    return {
      'img': _numbers(letterbox.image(np.asarray(img, np.uint8))),
      'ratio': np.full(2, letterbox.scale),
      'pad_wh': np.array(letterbox.margin[::-1]),
      'labels': np.concatenate([lab[:, :1], boxes], axis=1),
    }

  return adapters.function_adapter(run, tolerances={'out/img': 1})


@adapters.register_adapter('icafusion', 'aug_mosaic_pair')
def _mosaic(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  side = c['img_size']
  y, x, perspective_x, perspective_y, degrees, scale, shear_x, shear_y, *center = c['uniform_draws']
  c.ignore('hyp')  # What the draws were drawn from.
  order, sizes = [0, *c['extra_images']], [tuple(size) for size in c['image_hw']]
  mosaic = augmentation.Mosaic([sizes[index] for index in order], (y, x), (2 * side, 2 * side))
  warp = augmentation.Warp(
    mosaic.canvas,
    (side, side),
    perspective=(perspective_x, perspective_y),
    degrees=degrees,
    scale=scale,
    shear=(shear_x, shear_y),
    center=tuple(center),
  )

  def show(images: jax.Array) -> np.ndarray:
    pixels = np.asarray(images, np.uint8)
    tiles = [pixels[index, : sizes[index][0], : sizes[index][1]] for index in order]
    return _numbers(warp.image(mosaic.image(tiles)))

  def run(rgb: jax.Array, ir: jax.Array, lab_img: jax.Array, lab: jax.Array) -> Arrays:
    rows = [np.flatnonzero(np.asarray(lab_img) == index) for index in order]
    lab = lab.astype(np.float32)  # As the original has labels, before and after the warp.
    boxes = [_corners(lab[row], sizes[index]) for row, index in zip(rows, order, strict=True)]
    boxes, kept = warp.boxes(mosaic.boxes(boxes))
    classes = np.asarray(lab)[np.concatenate(rows), :1]
    labels = np.concatenate([classes, boxes.astype(np.float32)], axis=1)[kept]
    return {'rgb': show(rgb), 'ir': show(ir), 'labels': labels}

  return adapters.function_adapter(run, tolerances={'out/rgb': 2, 'out/ir': 2})


def _corners(labels: jax.Array, size: tuple[int, int]) -> np.ndarray:
  """Boxes in pixels of rows of class and centre and sides in shares of the image."""
  return np.asarray(boxes_lib.denormalize(boxes_lib.from_center_size(labels[:, 1:]), size))


def _numbers(image: np.ndarray) -> np.ndarray:
  """The original's images are recorded as real numbers."""
  return image.astype(np.float32)
