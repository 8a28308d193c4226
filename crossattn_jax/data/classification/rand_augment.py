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


def _color(fill: tuple[int, ...]) -> int | tuple[int, ...]:
  return fill[0] if len(fill) == 1 else fill


def _of_levels(change: Callable[[Image.Image, float], Image.Image]) -> Operation:
  """An operation that moves no pixel."""
  return lambda image, strength, fill, resample: change(image, strength)


def _of_places(matrix: Callable[[float, int, int], tuple[float, ...]]) -> Operation:
  """An operation that moves pixels: by the matrix of a strength, a width and a height."""

  def operation(image, strength, fill, resample):
    moved = matrix(strength, *image.size)
    return image.transform(
      image.size, Image.Transform.AFFINE, moved, resample, fillcolor=_color(fill)
    )

  return operation


def _enhance(kind: type) -> Operation:
  return _of_levels(lambda image, strength: kind(image).enhance(1 + strength * MAX_ENHANCEMENT))


def _rotate(image, strength, fill, resample):
  return image.rotate(strength * MAX_DEGREES, resample, fillcolor=_color(fill))


def _look_up(image, table):
  return image.point(table * len(image.getbands()))


def _posterize(image, strength):
  # Not `ImageOps.posterize`, which refuses to keep 0 bits: a black image, at full strength.
  kept = 256 - 2 ** (4 + int(strength * 4))
  return _look_up(image, [x & kept for x in range(256)])


def _solarize_add(image, strength):
  added = int(strength * MAX_SOLARIZE_ADD)
  return _look_up(image, [min(255, x + added) if x < 128 else x for x in range(256)])


OPERATIONS: dict[str, Operation] = {
  'auto_contrast': _of_levels(lambda image, _: ImageOps.autocontrast(image)),
  'equalize': _of_levels(lambda image, _: ImageOps.equalize(image)),
  'invert': _of_levels(lambda image, _: ImageOps.invert(image)),
  'rotate': _rotate,
  'posterize': _of_levels(_posterize),
  'solarize': _of_levels(lambda image, s: ImageOps.solarize(image, 256 - int(s * 256))),
  'solarize_add': _of_levels(_solarize_add),
  'color': _enhance(ImageEnhance.Color),
  'contrast': _enhance(ImageEnhance.Contrast),
  'brightness': _enhance(ImageEnhance.Brightness),
  'sharpness': _enhance(ImageEnhance.Sharpness),
  'shear_x': _of_places(lambda s, w, h: (1, s * MAX_SHEAR, 0, 0, 1, 0)),
  'shear_y': _of_places(lambda s, w, h: (1, 0, 0, s * MAX_SHEAR, 1, 0)),
  'translate_x': _of_places(lambda s, w, h: (1, 0, s * MAX_TRANSLATION * w, 0, 1, 0)),
  'translate_y': _of_places(lambda s, w, h: (1, 0, 0, 0, 1, s * MAX_TRANSLATION * h)),
}
SIGNED = frozenset(
  ['rotate', 'color', 'contrast', 'brightness', 'sharpness']
  + ['shear_x', 'shear_y', 'translate_x', 'translate_y']
)
