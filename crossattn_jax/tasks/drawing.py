"""Drawing with matplotlib, without a display, and writing of pictures."""

from collections.abc import Sequence
import io

from etils import epath, epy
import numpy as np
from PIL import Image

from crossattn_jax.tasks import attention_maps

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure, patches
  from matplotlib import image as image_lib


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


def panels(
  count: int, size: tuple[float, float], below: float = 0.0, most: int = 4
) -> tuple['figure.Figure', np.ndarray]:
  """A page of panels that fill rows evenly, at most `most` beside each other.

  Args:
    count: of the panels.
    size: (width, height) of one, in inches.
    below: free height below all, in inches.
    most: panels in a row.

  Returns:
    The page, and the axes `[count]`.
  """
  rows = -(-count // most)
  across = -(-count // rows)
  page = figure.Figure(figsize=(size[0] * across, size[1] * rows + below), layout='constrained')
  axes = page.subplots(rows, across, squeeze=False).ravel()
  for rest in axes[count:]:
    rest.set_axis_off()
  return page, axes[:count]


def columns(
  count: int, panels: int, size: tuple[float, float], below: float = 0.0, most: int = 8
) -> tuple['figure.Figure', np.ndarray]:
  """A page for examples that each have a column of panels, in bands of at most `most` examples.

  Args:
    count: of the examples.
    panels: of each.
    size: (width, height) of a panel, in inches.
    below: free height below all, in inches.
    most: examples beside each other.

  Returns:
    The page, and the axes `[count, panels]`, of which nothing is seen yet.
  """
  across = min(count, most)
  bands = -(-count // across)
  page = figure.Figure(
    figsize=(size[0] * across, size[1] * panels * bands + below), layout='constrained'
  )
  grid = page.subplots(bands * panels, across, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  by_example = grid.reshape(bands, panels, across).swapaxes(1, 2).reshape(-1, panels)
  return page, by_example[:count]


def name_panels(axes: np.ndarray, names: Sequence[str], most: int = 8) -> None:
  """Writes what panels show beside the first example of each band of `columns`."""
  for column in axes[::most]:
    for panel, name in zip(column, names, strict=True):
      panel.set_title(name, fontsize=7, loc='left')


def shortened(name: str, most: int = 24) -> str:
  """The end of a path, for a title."""
  return name if len(name) <= most else '…' + name[1 - most :]


def show_image(axes, image: np.ndarray | Image.Image) -> None:
  """Draws an image, bytes or floats in [0, 1], without axes."""
  pixels = np.asarray(image)
  if pixels.ndim == 3 and pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  # Else matplotlib stretches the levels that occur to black and white.
  axes.imshow(pixels, cmap='gray', vmin=0, vmax=1 if pixels.dtype.kind == 'f' else 255)
  axes.set_axis_off()


def show_attention(
  axes, image: np.ndarray | Image.Image, attention: attention_maps.Attention
) -> 'image_lib.AxesImage':
  """Lays the map over the whole image; its largest weight is bright, the query has a frame.

  Returns:
    What a colour bar is made for.
  """
  show_image(axes, image)
  height, width = np.asarray(image).shape[:2]
  shown = axes.imshow(
    attention.weights,
    cmap='inferno',
    alpha=0.6,
    interpolation='bilinear' if attention.query is None else 'nearest',
    extent=(-0.5, width - 0.5, height - 0.5, -0.5),
  )
  if attention.query is None:
    return shown
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
  return shown
