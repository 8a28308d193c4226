"""Luma and chrominance of 8-bit images, by the integer and rounding rules of OpenCV's YCrCb."""

import numpy as np


def luma(image: np.ndarray) -> np.ndarray:
  """Y of 8-bit RGB or grey, `[..., 3 or 1]` -> `[...]`, by OpenCV's integer arithmetic."""
  if image.shape[-1] == 1:
    return image[..., 0]
  # Whole numbers below 2^24: float32 has them exactly, and its product is fast.
  levels = image.astype(np.float32) @ np.array([4899, 9617, 1868], np.float32)
  levels += 8192
  levels *= 2.0**-14
  return levels.astype(np.uint8)


def is_grey(image: np.ndarray) -> bool:
  """Whether an RGB image `[height, width, 3]` has no colour."""
  return bool((image[..., :1] == image).all())


def recolor(fused: np.ndarray, image: np.ndarray) -> np.ndarray:
  """Gives a fused luma the chrominance of an image, by the 8-bit rules of YCrCb.

  Args:
    fused: uint8 `[height, width]`.
    image: uint8 RGB `[height, width, 3]`.

  Returns:
    uint8 RGB `[height, width, 3]`.
  """
  levels, own = image.astype(np.float64), luma(image).astype(np.float64)
  red_difference = _to_bytes(0.713 * (levels[..., 0] - own) + 128).astype(np.float64) - 128
  blue_difference = _to_bytes(0.564 * (levels[..., 2] - own) + 128).astype(np.float64) - 128
  colors = [
    fused + 1.403 * red_difference,
    fused - 0.714 * red_difference - 0.344 * blue_difference,
    fused + 1.773 * blue_difference,
  ]
  return _to_bytes(np.stack(colors, axis=-1))


def _to_bytes(values: np.ndarray) -> np.ndarray:
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)
