"""Images with their sentences, as all sources have them."""

import dataclasses

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Example:
  """An image and its sentences.

  Attributes:
    regions: float32 `[regions, channels]`.
    captions: as many of each image of a source.
    key: of the image, for people: its id.
  """

  regions: np.ndarray
  captions: tuple[str, ...]
  key: str


@dataclasses.dataclass(frozen=True)
class Picture:
  """What an image looks like.

  Attributes:
    image: RGB.
    boxes: (top, left, bottom, right) of each region in pixels; None where they are not known.
  """

  image: Image.Image
  boxes: tuple[tuple[float, float, float, float], ...] | None
