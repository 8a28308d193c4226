"""Images: decoding, resizing and cropping as Pillow does, normalisation."""

from collections.abc import Sequence
import io
import os
import struct
from typing import BinaryIO
import zlib

import numpy as np
from PIL import Image

from crossattn_jax.data import pipeline

INTERPOLATIONS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}

# Whatever Pillow's readers raise on damaged files.
DECODING_ERRORS = (
  OSError,  # Unknown format, truncated file, broken stream.
  SyntaxError,  # Damaged PNG and TIFF headers.
  ValueError,
  IndexError,
  KeyError,
  TypeError,
  OverflowError,
  struct.error,
  zlib.error,
  Image.DecompressionBombError,
)


def decode(data: bytes, channels: int) -> Image.Image:
  """Decodes an image to 8 bits per channel.

  Palettes are looked up, CMYK is converted, transparency is dropped; of 16 bits per channel the
  upper 8 are kept. The orientation in EXIF data is ignored, as torchvision's loader does.

  Args:
    data: an encoded image in any format that Pillow reads.
    channels: 3 for RGB, 1 for grey.

  Raises:
    UnreadableError: the bytes are damaged or no image.
  """
  try:
    image = Image.open(io.BytesIO(data))
    image.load()
    if image.mode.startswith('I;16'):
      # Pillow would clip 16-bit grey levels at 255.
      image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = 'RGB' if channels == 3 else 'L'
    return image if image.mode == mode else image.convert(mode)
  except DECODING_ERRORS as error:
    raise pipeline.UnreadableError(f'{type(error).__name__}: {error}') from error


def read(path: str | os.PathLike[str], channels: int) -> Image.Image:
  """Decodes a file; see `decode`.

  Raises:
    ValueError: the file is no readable image.
  """
  with open(path, 'rb') as file:
    data = file.read()
  try:
    return decode(data, channels)
  except pipeline.UnreadableError as error:
    raise ValueError(f'cannot read image {os.fspath(path)!r}: {error}') from error


def size_in_header(file: str | BinaryIO) -> tuple[int, int]:
  """(height, width) of an image, not decoded; (1, 1), which takes little room, where that fails."""
  try:
    with Image.open(file) as image:
      return image.height, image.width
  except OSError:
    return 1, 1


def evaluation_crop(
  image: Image.Image, size: tuple[int, int], crop_fraction: float, interpolation: str = 'bicubic'
) -> Image.Image:
  """Resizes an image and cuts out its centre, as timm and torchvision do.

  The image is resized, keeping its proportions, to the smallest size that covers
  `int(height / crop_fraction)` x `int(width / crop_fraction)`: for a square, its short side becomes
  `int(size / crop_fraction)`, e.g. 274 for 240 and a fraction of 224 / 256.

  Args:
    image: any size.
    size: (height, width) of the result.
    crop_fraction: side of the crop as a share of the resized side, in (0, 1].
    interpolation: a key of `INTERPOLATIONS`; Pillow's filters widen when they shrink an image.
  """
  height, width = size
  cover_height, cover_width = cover_size(size, crop_fraction)
  if cover_height * image.width >= cover_width * image.height:
    resized = (int(cover_height * image.width / image.height), cover_height)
  else:
    resized = (cover_width, int(cover_width * image.height / image.width))
  image = resize(image, (resized[1], resized[0]), interpolation)
  left = round((image.width - width) / 2)
  top = round((image.height - height) / 2)
  return image.crop((left, top, left + width, top + height))


def cover_size(size: tuple[int, int], crop_fraction: float) -> tuple[int, int]:
  """The (height, width) that a resized image must cover for an evaluation crop of `size`."""
  return int(size[0] / crop_fraction), int(size[1] / crop_fraction)


def resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
  """Resizes to (height, width) whatever the proportions."""
  if image.size == (size[1], size[0]):
    return image
  return image.resize((size[1], size[0]), INTERPOLATIONS[interpolation])


def normalize(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
  """Returns `(pixels / 255 - mean) / std` as float32 `[height, width, channels]`.

  The three steps are those of torchvision, in its order, so that not even the last bit differs.
  """
  # On rows of all channels: NumPy is slow at broadcasting over an innermost axis of three.
  rows = np.asarray(image).reshape(image.height, -1).astype(np.float32)
  rows /= np.float32(255)
  rows -= np.tile(np.asarray(mean, np.float32), image.width)
  rows /= np.tile(np.asarray(std, np.float32), image.width)
  return rows.reshape(image.height, image.width, -1)


def denormalize(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
  """Undoes `normalize`: uint8 `[..., height, width, channels]` of normalised values, rounded."""
  pixels = (image * np.asarray(std, np.float32) + np.asarray(mean, np.float32)) * 255
  return np.clip(np.round(pixels), 0, 255).astype(np.uint8)
