"""Sizes of images that are resized. Needs nothing but Python.

Exported models take this file with them.
"""

from collections.abc import Sequence
import math


def fit(
  size: Sequence[int],
  box: Sequence[int],
  within: Sequence[float] = (math.inf, math.inf),
  multiple: int = 1,
) -> tuple[int, int]:
  """(height, width) of an image after bringing it into a box, keeping its proportions.

  Args:
    size: (height, width).
    box: (long side, short side) that the image's sides do not exceed, whichever they are.
    within: (height, width) that they do not exceed either.
    multiple: sides are rounded to the nearest pixel; or else, as in DETR and ViDT, the short side
      is, the long side follows it, and both are cut down to a multiple.
  """
  if multiple == 1:
    limits = max(box) / max(size), min(box) / min(size)
    factor = min(*limits, within[0] / size[0], within[1] / size[1])
    return tuple(max(int(side * factor + 0.5), 1) for side in size)
  short, (height, width) = min(size), size
  limits = min(box), max(box) * short / max(size)
  resized = round(min(*limits, within[0] * short / height, within[1] * short / width))
  sides = (
    min(resized * side // short, max(box), most) for side, most in zip(size, within, strict=True)
  )
  return tuple(max(int(side // multiple), 1) * multiple for side in sides)
