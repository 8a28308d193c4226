"""Photometric distortion as SSD (arXiv 1512.02325, section 2.2) and mmsegmentation have it."""

import numpy as np
from PIL import Image

_PROBABILITY = 0.5
_BRIGHTNESS = 32
_FACTORS = (0.5, 1.5)
# Of 360 degrees, in Pillow's unit of 256 to the circle: 36 degrees.
_HUE = 256 / 10


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Changes brightness, contrast, saturation and hue, each with probability 1/2.

  Contrast comes before or after saturation and hue. Levels are rounded and cut to 0..255 after each
  change.

  Args:
    image: RGB, uint8 `[height, width, 3]`.
    rng: of the example.

  Returns:
    The same shape and dtype.
  """
  if rng.random() < _PROBABILITY:
    image = _scaled(image, 1.0, rng.uniform(-_BRIGHTNESS, _BRIGHTNESS))
  contrast_first = rng.random() < _PROBABILITY
  contrast = rng.uniform(*_FACTORS) if rng.random() < _PROBABILITY else None
  if contrast is not None and contrast_first:
    image = _scaled(image, contrast, 0.0)
  saturation = rng.uniform(*_FACTORS) if rng.random() < _PROBABILITY else None
  hue = round(rng.uniform(-_HUE, _HUE)) if rng.random() < _PROBABILITY else None
  if saturation is not None or hue is not None:
    bands = list(Image.fromarray(image).convert('HSV').split())
    if saturation is not None:
      bands[1] = Image.fromarray(_scaled(np.asarray(bands[1]), saturation, 0.0))
    if hue is not None:
      # Bytes wrap around as the circle does.
      bands[0] = Image.fromarray(np.asarray(bands[0]) + np.uint8(hue % 256))
    image = np.asarray(Image.merge('HSV', bands).convert('RGB'))
  if contrast is not None and not contrast_first:
    image = _scaled(image, contrast, 0.0)
  return image


def _scaled(levels: np.ndarray, factor: float, offset: float) -> np.ndarray:
  """`levels * factor + offset` by a table of all 256 levels."""
  table = np.rint(np.clip(np.arange(256) * factor + offset, 0, 255)).astype(np.uint8)
  return table[levels]
