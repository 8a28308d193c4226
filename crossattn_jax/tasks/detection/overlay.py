"""Draws boxes, masks and names of objects over an image. Needs nothing but numpy and Pillow.

Exported models take this file with them.
"""

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_OPACITY = 0.45
# Of pictures, in pixels: names can be read on them, and they can be shown.
_SHORT_SIDE, _LONG_SIDE = 480, 1600


def colors(count):
  """Bright colours of classes, which differ as far as they can, uint8 `[count, 3]`."""
  golden = (5**0.5 - 1) / 2  # Multiples of it spread over a circle, however many there are.
  rgb = [
    colorsys.hsv_to_rgb((index * golden) % 1, 0.9 - 0.3 * (index // 7 % 2), 0.95)
    for index in range(count)
  ]
  return np.rint(255 * np.array(rgb).reshape(-1, 3)).astype(np.uint8)


def resized(image):
  """A Pillow image in the size of a picture, and its factor: small ones are enlarged."""
  factor = max(1, _SHORT_SIDE / min(image.size))
  factor = min(factor, _LONG_SIDE / max(image.size))
  size = [max(1, round(side * factor)) for side in image.size]
  return image.convert('RGB').resize(size, Image.Resampling.BICUBIC), factor


def draw(image, boxes, names, palette, masks=None, text=None):
  """Draws objects over an image, the first ones on top.

  Args:
    image: a Pillow image, RGB.
    boxes: corners x_min, y_min, x_max, y_max in its pixels, `[n, 4]`.
    names: what is written at each box.
    palette: a colour of each, uint8 `[n, 3]`.
    masks: bool `[n, height, width]`, or None.
    text: height of names in pixels; by default such that they can be read in the image alone.

  Returns:
    An image of the same size.
  """
  last_to_first = range(len(names))[::-1]
  if masks is not None:
    pixels = np.array(image, np.float32)
    for index in last_to_first:
      pixels[masks[index]] += _OPACITY * (palette[index] - pixels[masks[index]])
      pixels[_edge(masks[index])] = palette[index]
    image = Image.fromarray(np.rint(pixels).astype(np.uint8))
  image = image.copy()
  short = min(image.size)
  painter = ImageDraw.Draw(image)
  text = text or max(13, short / 32)
  painter.font = ImageFont.load_default(text)
  corners = np.clip(np.reshape(boxes, (-1, 4)), 0, np.tile(image.size, 2) - 1)
  for index in last_to_first:
    outline = tuple(palette[index].tolist())
    painter.rectangle(corners[index].tolist(), outline=outline, width=round(max(2, text / 8)))
  labels = []
  for corner, name in zip(corners, names, strict=True):
    labels.append(_place(painter, corner, name, labels))
  for index in last_to_first:
    _write(painter, labels[index], names[index], palette[index])
  return image


def _edge(mask):
  """The pixels of a mask that have a neighbour outside of it."""
  inside = np.pad(mask, 1)
  inside = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
  return mask & ~inside


def _place(painter, box, name, taken):
  """Where the name of a box hides least of those that have a place, a rectangle like a box."""
  across, down = painter.im.size
  _, _, right, bottom = painter.textbbox((0, 0), name)
  width, height = right + 6, bottom + 4
  x_min, y_min, x_max, y_max = box
  places = [
    (min(max(x, 0), max(across - width, 0)), y)
    for x in (x_min, x_max - width)
    for y in (y_min - height, y_min, y_max, y_max - height)
    if y >= 0 and y + height <= down
  ] or [(0, 0)]
  rectangles = [(x, y, x + width, y + height) for x, y in places]
  return min(rectangles, key=lambda place: sum(_shared(place, other) for other in taken))


def _write(painter, place, name, color):
  """Writes a name on a ground of a colour."""
  x, y, x_max, y_max = place
  painter.rectangle((x, y, x_max - 1, y_max - 1), fill=tuple(color.tolist()))
  bright = np.dot(color, (0.299, 0.587, 0.114)) > 140
  painter.text((x + 3, y + 2), name, fill='black' if bright else 'white')


def _shared(one, other):
  """The area that two rectangles share, in pixels."""
  across = min(one[2], other[2]) - max(one[0], other[0])
  down = min(one[3], other[3]) - max(one[1], other[1])
  return max(across, 0) * max(down, 0)
