"""Decodes image files to 8 bits per channel: the same code in the library and beside exports.

Needs numpy and Pillow only; `training.export` puts this file beside the scripts that use it.
"""

import io
import sys
import warnings

import numpy as np
from PIL import Image, ImageOps

# Pillow's own limit: what looks larger may be a small file made to fill the memory.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)

_DEPTHS = {'I': '32-bit whole numbers', 'F': '32-bit floating-point numbers'}


def decode(data, mode, levels=None, upright=False, max_pixels=MAX_PIXELS):
  """Decodes an image to 8 bits per channel.

  Palettes are looked up, CMYK is converted, transparency is dropped. Of 16 bits per channel the
  upper 8 are kept, whatever the format: PNG, TIFF, or PGM, which is first scaled to its full range.

  Args:
    data: bytes of a file in any format that Pillow reads.
    mode: 'RGB', 'L' (grey), or 'RGBA', which keeps transparency. None: 'L' for grey files, 'RGB'
      for others.
    levels: (low, high): the levels of grey images deeper than 8 bits that become 0 and 255, those
      between in proportion, those beyond cut off. Without them 32-bit images are refused.
    upright: turns the image as its EXIF orientation says, which photos of phones have. TIFF is
      turned in any case, by Pillow.
    max_pixels: the largest image that is decoded.

  Returns:
    A `PIL.Image.Image` of the mode.

  Raises:
    ValueError: the image is too large, or deeper than 16 bits without `levels`.
    Exception: whatever Pillow raises on damaged files, `OSError` mostly.
  """
  image = _open(io.BytesIO(data), max_pixels)
  image.load()
  deep = image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PPM')
  if upright:
    ImageOps.exif_transpose(image, in_place=True)
  if levels is not None and (deep or image.mode in _DEPTHS):
    image = _scaled(np.asarray(image, np.float64), *levels)
  elif deep:
    # Pillow would cut off grey levels at 255.
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  elif image.mode in _DEPTHS:
    raise ValueError(
      f'its levels are {_DEPTHS[image.mode]}, and nothing says which are black and white: set '
      'dataset.decoding.levels=(low, high)'
    )
  if mode is None:
    mode = 'L' if image.mode in ('1', 'L', 'LA') else 'RGB'
  return image if image.mode == mode else image.convert(mode)


def read_or_exit(path, mode, **options):
  """Decodes an image file, see `decode`; if it cannot be read, a sentence ends the program."""
  try:
    with open(path, 'rb') as file:
      return decode(file.read(), mode, **options)
  except Exception as error:  # Pillow may raise anything.
    sys.exit(f'error: cannot read image {str(path)!r}: {error}')


def size(file, upright=False):
  """(height, width) of an image, as `decode` would return it; only the header is read.

  Those that are larger than Pillow's own limit need `allow`.
  """
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    with Image.open(file) as image:
      # Orientations from 5 on turn by 90 degrees.
      sideways = upright and image.format != 'TIFF' and orientation(image) >= 5
      return image.size if sideways else image.size[::-1]


def orientation(image):
  """The EXIF orientation of a `PIL.Image.Image`: 1 is upright, the others are to be turned."""
  return image.getexif().get(0x0112, 1)


def allow(max_pixels):
  """Lets Pillow open images of up to so many pixels, in this process."""
  if max_pixels > MAX_PIXELS:
    # Pillow gives up at twice this limit.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)


def _open(file, max_pixels):
  allow(max_pixels)
  too_large = f'more pixels than dataset.decoding.max_pixels={max_pixels}, which can be raised'
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', Image.DecompressionBombWarning)
      image = Image.open(file)
  except Image.DecompressionBombError as error:
    raise ValueError(f'it has {too_large} ({error})') from error
  if image.width * image.height > max_pixels:
    raise ValueError(f'{image.width} x {image.height} are {too_large}')
  return image


def _scaled(values, low, high):
  if not np.isfinite(values).all():
    raise ValueError('some of its levels are not finite')
  return Image.fromarray(
    np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
  )
