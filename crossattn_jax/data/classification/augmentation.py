"""Random crops, flips, colour jitter and erasing of training images (CrossViT spec, section 5).

Every function draws from the generator that it is handed and from nothing else, so that an
augmented image is a function of (image, seed, position in the stream).
"""

from collections.abc import Sequence
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_ATTEMPTS = 10


def random_resized_crop(
  width: int,
  height: int,
  rng: np.random.Generator,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
  """Draws the crop of Inception-style training.

  The area is uniform in `scale` times the image's, the aspect ratio log-uniform in `ratio`; after
  ten draws that do not fit, the largest centred crop within `ratio` is taken.

  Returns:
    (left, top, right, bottom) in pixels; the caller resizes it.
  """
  log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
  for _ in range(_ATTEMPTS):
    area = rng.uniform(*scale) * width * height
    aspect = math.exp(rng.uniform(*log_ratio))
    crop_width = round(math.sqrt(area * aspect))
    crop_height = round(math.sqrt(area / aspect))
    if 0 < crop_width <= width and 0 < crop_height <= height:
      left = int(rng.integers(width - crop_width, endpoint=True))
      top = int(rng.integers(height - crop_height, endpoint=True))
      return left, top, left + crop_width, top + crop_height
  crop_width, crop_height = width, height
  if width / height < ratio[0]:
    crop_height = round(width / ratio[0])
  elif width / height > ratio[1]:
    crop_width = round(height * ratio[1])
  left, top = (width - crop_width) // 2, (height - crop_height) // 2
  return left, top, left + crop_width, top + crop_height


def random_padded_crop(image: Image.Image, rng: np.random.Generator, padding: int) -> Image.Image:
  """Pads with black on all sides and cuts out a random window of the image's own size."""
  left, top = (int(offset) for offset in rng.integers(-padding, padding, size=2, endpoint=True))
  # Pillow's crop fills what lies outside with black.
  return image.crop((left, top, left + image.width, top + image.height))


def random_flip(image: Image.Image, rng: np.random.Generator, probability: float) -> Image.Image:
  """Mirrors left and right with the given probability."""
  return ImageOps.mirror(image) if rng.random() < probability else image


def color_jitter(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
  """Changes brightness, contrast and saturation, in random order.

  Each by a factor uniform in [max(0, 1 - strength), 1 + strength].
  """
  kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
  factors = rng.uniform(max(0.0, 1 - strength), 1 + strength, size=len(kinds))
  for kind in rng.permutation(len(kinds)):
    image = kinds[kind](image).enhance(float(factors[kind]))
  return image


def random_erasing(
  image: np.ndarray,
  rng: np.random.Generator,
  *,
  probability: float = 0.25,
  area: Sequence[float] = (0.02, 1 / 3),
  min_aspect: float = 0.3,
) -> np.ndarray:
  """Replaces one random rectangle by standard normal noise (Zhong et al. 2017, arXiv 1708.04896).

  The area is uniform in `area` times the image's, the aspect ratio log-uniform in
  [min_aspect, 1 / min_aspect]; after ten draws that do not fit, the image stays as it is.

  Args:
    image: normalised float32 `[height, width, channels]`; it is changed in place.
    rng: the only source of randomness.
    probability: with which a rectangle is erased at all.
    area: bounds of the share that is erased.
    min_aspect: lower bound of height / width.
  """
  if rng.random() >= probability:
    return image
  height, width, channels = image.shape
  log_aspect = math.log(min_aspect)
  for _ in range(_ATTEMPTS):
    target = rng.uniform(*area) * height * width
    aspect = math.exp(rng.uniform(log_aspect, -log_aspect))
    box_height = round(math.sqrt(target * aspect))
    box_width = round(math.sqrt(target / aspect))
    if box_height < height and box_width < width:
      top = int(rng.integers(height - box_height, endpoint=True))
      left = int(rng.integers(width - box_width, endpoint=True))
      image[top : top + box_height, left : left + box_width] = rng.standard_normal(
        (box_height, box_width, channels), np.float32
      )
      break
  return image
