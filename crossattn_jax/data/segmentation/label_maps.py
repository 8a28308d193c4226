"""Label maps in image files: which number, or which colour, each pixel holds."""

import io

import numpy as np
from PIL import Image

from crossattn_jax.data import image_ops, pipeline


class ColorsError(ValueError):
  """Pixels hold colours where one label of each is expected."""


def decode(data: bytes, holds: str) -> np.ndarray:
  """Decodes a label map to labels as `taxonomies.Taxonomy` counts them, `[height, width]`.

  Args:
    data: an encoded image.
    holds: see `taxonomies.Taxonomy`.

  Raises:
    UnreadableError: the bytes are damaged or no image.
    ColorsError: pixels hold colours where labels are expected.
  """
  try:
    image = Image.open(io.BytesIO(data))
    labels = np.asarray(image.convert('RGB') if holds == 'color' else image)
  except image_ops.DECODING_ERRORS as error:
    raise pipeline.UnreadableError(f'{type(error).__name__}: {error}') from error
  if holds == 'color':
    return labels.astype(np.int32) @ (1 << 16, 1 << 8, 1)
  if labels.ndim == 3:
    # Beside two or four bands the last one is the opacity.
    bands = labels[..., : labels.shape[-1] - 1 + labels.shape[-1] % 2]
    if holds == 'label' and (bands != bands[..., :1]).any():
      raise ColorsError(f'holds colours (mode {image.mode}), not one label per pixel')
    labels = labels[..., 0]
  # Of one bit, Pillow makes booleans.
  return labels.astype(np.uint8) if labels.dtype == bool else labels
