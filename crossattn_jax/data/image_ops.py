"""Images: decoding, resizing and cropping as Pillow does, normalisation."""

from collections.abc import Sequence
import os
import struct
from typing import Any, BinaryIO
import zlib

import ml_collections
from ml_collections import config_dict
import numpy as np
import PIL
from PIL import Image

from crossattn_jax.data import decoding, pipeline

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


def add_options(config: ml_collections.ConfigDict) -> None:
  """Adds `config.dataset.decoding`: how image files become 8 bits per channel."""
  config.decoding = ml_collections.ConfigDict(
    {
      # (low, high): which levels of images deeper than 8 bits become 0 and 255. None: all that 16
      # bits can hold; 32-bit images are refused.
      'levels': config_dict.placeholder(tuple),
      # Whether images are turned as their EXIF orientation says. None: folders of photos and the
      # files of predictions are, other data sets are not.
      'upright': config_dict.placeholder(bool),
      # Larger images are refused, since decoding them may take all memory.
      'max_pixels': decoding.MAX_PIXELS,
    }
  )


def check_options(config: ml_collections.ConfigDict) -> None:
  """Refuses wrong values of the keys of `add_options`.

  Raises:
    ValueError: names the key.
  """
  require = pipeline.requirement(config)
  levels = config.decoding.levels
  require(
    levels is None or (len(levels) == 2 and levels[0] < levels[1]),
    'decoding.levels',
    'two levels (low, high), such as (0, 4095), or None',
  )
  require(config.decoding.max_pixels > 0, 'decoding.max_pixels', 'positive')


def decoding_of(config: ml_collections.ConfigDict, photos: bool) -> dict[str, Any]:
  """The keyword arguments of `decode`, as JSON can hold them.

  Args:
    config: `config.dataset`.
    photos: whether the files may be photos as cameras leave them, which are then shown upright.
  """
  options = config.decoding
  levels = None if options.levels is None else [float(level) for level in options.levels]
  upright = photos if options.upright is None else options.upright
  return {'levels': levels, 'upright': upright, 'max_pixels': options.max_pixels}


def decode(data: bytes, channels: int | None, **options: Any) -> Image.Image:
  """Decodes an image to 8 bits per channel.

  Args:
    data: an encoded image in any format that Pillow reads.
    channels: 3 for RGB, 1 for grey; None for those that the file has.
    **options: see `decoding.decode`.

  Raises:
    UnreadableError: the bytes are damaged, no image, too large or too deep.
  """
  try:
    return decoding.decode(data, {3: 'RGB', 1: 'L', None: None}[channels], **options)
  except ValueError as error:
    raise pipeline.UnreadableError(str(error)) from error
  except PIL.UnidentifiedImageError as error:
    what = 'in no image format that Pillow knows' if data else 'empty'
    raise pipeline.UnreadableError(f'the file is {what}') from error
  except DECODING_ERRORS as error:
    raise pipeline.UnreadableError(f'{type(error).__name__}: {error}') from error


def read(path: str | os.PathLike[str], channels: int, **options: Any) -> Image.Image:
  """Decodes a file; see `decode`.

  Raises:
    ValueError: the file is no readable image.
  """
  with open(path, 'rb') as file:
    data = file.read()
  try:
    return decode(data, channels, **options)
  except pipeline.UnreadableError as error:
    raise ValueError(f'cannot read image {os.fspath(path)!r}: {error}') from error


def size_in_header(file: str | BinaryIO, upright: bool = False) -> tuple[int, int]:
  """(height, width) of an image, not decoded; (1, 1), which takes little room, where that fails."""
  try:
    return decoding.size(file, upright)
  except (OSError, Image.DecompressionBombError):
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
