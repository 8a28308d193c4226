"""Figures of predictions, drawn with matplotlib and without a display."""

from collections.abc import Mapping, Sequence
import dataclasses
import io

from etils import epath
from matplotlib import figure, patches
import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Attention:
  """Where something in an image looks.

  Attributes:
    weights: `[rows, columns]` over the image.
    query: what looks, of the same shape, not zero there; None where it has no place in the image,
      as a class token has none.
  """

  weights: np.ndarray
  query: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
  """An evaluation example to be shown.

  Attributes:
    image: `[height, width, channels]` in [0, 1].
    predicted: name of the most probable class.
    true: name of the true class.
    probability: of the predicted class.
    attention: named maps over the image.
  """

  image: np.ndarray
  predicted: str
  true: str
  probability: float
  attention: Mapping[str, Attention]


def _save(sheet: figure.Figure, path: epath.Path) -> None:
  """Writes a PNG; the path may be in a bucket, which matplotlib cannot open."""
  buffer = io.BytesIO()
  sheet.savefig(buffer, format='png', dpi=120)
  path.write_bytes(buffer.getvalue())


def _show_image(axes, image: np.ndarray | Image.Image) -> None:
  pixels = np.asarray(image)
  if pixels.ndim == 3 and pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  limits = {'vmin': 0, 'vmax': 1} if pixels.dtype.kind == 'f' else {}
  axes.imshow(pixels, cmap='gray', **limits)
  axes.set_axis_off()


def _show_attention(axes, image: np.ndarray | Image.Image, attention: Attention) -> None:
  """Lays the map over the whole image; its largest weight is bright, the query has a frame."""
  _show_image(axes, image)
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


def classification_sheet(path: epath.Path, samples: Sequence[Sample], columns: int = 8) -> None:
  """Draws examples in rows: the image with its classes, below it each attention map.

  Args:
    path: of the PNG.
    samples: all with the same names of maps.
    columns: examples per row.
  """
  names = list(samples[0].attention)
  bands = -(-len(samples) // columns)
  rows = bands * (1 + len(names))
  sheet = figure.Figure(figsize=(1.3 * columns, 1.45 * rows), layout='constrained')
  grid = sheet.subplots(rows, columns, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  for index, sample in enumerate(samples):
    band, column = divmod(index, columns)
    top = band * (1 + len(names))
    _show_image(grid[top, column], sample.image)
    right = sample.predicted == sample.true
    grid[top, column].set_title(
      f'{sample.predicted} ({sample.probability:.0%})'
      + ('' if right else f'\ntrue: {sample.true}'),
      fontsize=8,
      color='green' if right else 'red',
    )
    for row, name in enumerate(names, start=top + 1):
      _show_attention(grid[row, column], sample.image, sample.attention[name])
      if column == 0:
        grid[row, column].set_title(name, fontsize=7, loc='left')
  _save(sheet, path)


def classified_image(
  path: epath.Path,
  image: np.ndarray | Image.Image,
  classes: Sequence[tuple[str, float]],
  attention: Mapping[str, Attention],
) -> None:
  """Draws an image, its attention maps and a bar chart of its best classes.

  Args:
    path: of the PNG.
    image: `[height, width, channels]` in [0, 1], or a PIL image.
    classes: names and probabilities, best first.
    attention: named maps over the image.
  """
  panels = 2 + len(attention)
  sheet = figure.Figure(figsize=(3 * panels, 3), layout='constrained')
  axes = sheet.subplots(1, panels)
  _show_image(axes[0], image)
  for panel, (name, shown) in zip(axes[1:-1], attention.items(), strict=True):
    _show_attention(panel, image, shown)
    panel.set_title(name, fontsize=8)
  names, probabilities = zip(*classes, strict=True)
  bars = axes[-1].barh(range(len(names)), probabilities)
  axes[-1].bar_label(bars, [f'{probability:.1%}' for probability in probabilities], padding=2)
  axes[-1].set_yticks(range(len(names)), names)
  axes[-1].invert_yaxis()
  axes[-1].set_xlim(0, 1.15)
  axes[-1].set_xlabel('probability')
  _save(sheet, path)
