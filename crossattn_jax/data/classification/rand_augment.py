"""RandAugment with operations whose strength grows with the magnitude.

Source: RandAugment, Cubuk et al. 2019 (arXiv 1909.13719), in the form that DeiT and CrossViT train
with: timm's policy `rand-m9-mstd0.5-inc1`. `docs/data.md` lists the facts.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 10.0
MAX_SHEAR = 0.3
MAX_TRANSLATION = 0.45
MAX_DEGREES = 30.0
MAX_ENHANCEMENT = 0.9
MAX_SOLARIZE_ADD = 110

# (image, strength, fill, filter) -> image. Strength is magnitude / 10, negative in half of the
# draws for the operations of `SIGNED`.
Operation = Callable[[Image.Image, float, tuple[int, ...], Image.Resampling], Image.Image]


def rand_augment(
  image: Image.Image,
  rng: np.random.Generator,
  *,
  num_ops: int = 2,
  magnitude: float = 9.0,
  magnitude_std: float = 0.5,
  probability: float = 0.5,
  fill: tuple[int, ...],
  resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
  """Applies `num_ops` operations, drawn with replacement from `OPERATIONS`.

  Args:
    image: RGB or grey.
    rng: the only source of randomness.
    num_ops: how many operations are drawn.
    magnitude: mean strength, of at most 10.
    magnitude_std: standard deviation of the strength, drawn for each operation and cut to [0, 10].
    probability: with which a drawn operation is applied at all.
    fill: colour of pixels that come from outside, one value per channel.
    resample: filter of the geometric operations.
  """
  for name in rng.choice(list(OPERATIONS), num_ops):
    if rng.random() >= probability:
      continue
    strength = np.clip(rng.normal(magnitude, magnitude_std), 0, MAX_MAGNITUDE) / MAX_MAGNITUDE
    if name in SIGNED and rng.random() < 0.5:
      strength = -strength
    image = OPERATIONS[name](image, float(strength), fill, resample)
  return image


def _affine(image, matrix, fill, resample):
  return image.transform(
    image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=_color(fill)
  )


def _color(fill: tuple[int, ...]) -> int | tuple[int, ...]:
  return fill[0] if len(fill) == 1 else fill


def _look_up(image, table):
  return image.point(table * len(image.getbands()))


def _auto_contrast(image, strength, fill, resample):
  del strength, fill, resample
  return ImageOps.autocontrast(image)


def _equalize(image, strength, fill, resample):
  del strength, fill, resample
  return ImageOps.equalize(image)


def _invert(image, strength, fill, resample):
  del strength, fill, resample
  return ImageOps.invert(image)


def _rotate(image, strength, fill, resample):
  return image.rotate(strength * MAX_DEGREES, resample, fillcolor=_color(fill))


def _posterize(image, strength, fill, resample):
  del fill, resample
  # Not `ImageOps.posterize`, which refuses to keep 0 bits: a black image, at full strength.
  kept = 256 - 2 ** (4 + int(strength * 4))
  return _look_up(image, [x & kept for x in range(256)])


def _solarize(image, strength, fill, resample):
  del fill, resample
  return ImageOps.solarize(image, 256 - int(strength * 256))


def _solarize_add(image, strength, fill, resample):
  del fill, resample
  added = int(strength * MAX_SOLARIZE_ADD)
  return _look_up(image, [min(255, x + added) if x < 128 else x for x in range(256)])


def _enhance(kind: type) -> Operation:
  def operation(image, strength, fill, resample):
    del fill, resample
    return kind(image).enhance(1 + strength * MAX_ENHANCEMENT)

  return operation


def _shear_x(image, strength, fill, resample):
  return _affine(image, (1, strength * MAX_SHEAR, 0, 0, 1, 0), fill, resample)


def _shear_y(image, strength, fill, resample):
  return _affine(image, (1, 0, 0, strength * MAX_SHEAR, 1, 0), fill, resample)


def _translate_x(image, strength, fill, resample):
  pixels = strength * MAX_TRANSLATION * image.width
  return _affine(image, (1, 0, pixels, 0, 1, 0), fill, resample)


def _translate_y(image, strength, fill, resample):
  pixels = strength * MAX_TRANSLATION * image.height
  return _affine(image, (1, 0, 0, 0, 1, pixels), fill, resample)


OPERATIONS: dict[str, Operation] = {
  'auto_contrast': _auto_contrast,
  'equalize': _equalize,
  'invert': _invert,
  'rotate': _rotate,
  'posterize': _posterize,
  'solarize': _solarize,
  'solarize_add': _solarize_add,
  'color': _enhance(ImageEnhance.Color),
  'contrast': _enhance(ImageEnhance.Contrast),
  'brightness': _enhance(ImageEnhance.Brightness),
  'sharpness': _enhance(ImageEnhance.Sharpness),
  'shear_x': _shear_x,
  'shear_y': _shear_y,
  'translate_x': _translate_x,
  'translate_y': _translate_y,
}
SIGNED = frozenset(
  ['rotate', 'color', 'contrast', 'brightness', 'sharpness']
  + ['shear_x', 'shear_y', 'translate_x', 'translate_y']
)
