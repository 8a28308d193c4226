"""Drawing with matplotlib, without a display, and writing of pictures."""

import io

from etils import epath, epy
import numpy as np
from PIL import Image

from crossattn_jax.tasks import attention_maps

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure, patches


def write_png(path: epath.Path, image: Image.Image) -> None:
  """Writes an image; the path may be in a bucket."""
  buffer = io.BytesIO()
  image.save(buffer, 'png')
  path.write_bytes(buffer.getvalue())


def save(sheet: 'figure.Figure', path: epath.Path) -> None:
  """Writes a PNG; the path may be in a bucket, which matplotlib cannot open."""
  buffer = io.BytesIO()
  sheet.savefig(buffer, format='png', dpi=120)
  path.write_bytes(buffer.getvalue())


def show_image(axes, image: np.ndarray | Image.Image) -> None:
  """Draws an image, floats in [0, 1], without axes."""
  pixels = np.asarray(image)
  if pixels.ndim == 3 and pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  limits = {'vmin': 0, 'vmax': 1} if pixels.dtype.kind == 'f' else {}
  axes.imshow(pixels, cmap='gray', **limits)
  axes.set_axis_off()


def show_attention(
  axes, image: np.ndarray | Image.Image, attention: attention_maps.Attention
) -> None:
  """Lays the map over the whole image; its largest weight is bright, the query has a frame."""
  show_image(axes, image)
  height, width = np.asarray(image).shape[:2]
  axes.imshow(
    attention.weights,
    cmap='inferno',
    alpha=0.6,
    interpolation='bilinear' if attention.query is None else 'nearest',
    extent=(-0.5, width - 0.5, height - 0.5, -0.5),
  )
  if attention.query is None:
    return
  rows, columns = np.nonzero(attention.query)
  down, right = height / attention.query.shape[0], width / attention.query.shape[1]
  axes.add_patch(
    patches.Rectangle(
      (columns.min() * right - 0.5, rows.min() * down - 0.5),
      (np.ptp(columns) + 1) * right,
      (np.ptp(rows) + 1) * down,
      fill=False,
      edgecolor='cyan',
      linewidth=1.5,
    )
  )
