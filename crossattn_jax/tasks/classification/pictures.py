"""Pictures of classified images."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath, epy
import numpy as np
from PIL import Image

from crossattn_jax.tasks import attention_maps, drawing

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure


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
  attention: Mapping[str, attention_maps.Attention]


def sheet(path: epath.Path, samples: Sequence[Sample], columns: int = 8) -> None:
  """Draws examples in rows: the image with its classes, below it each attention map.

  Args:
    path: of the PNG.
    samples: all with the same names of maps.
    columns: examples per row.
  """
  names = list(samples[0].attention)
  bands = -(-len(samples) // columns)
  rows = bands * (1 + len(names))
  page = figure.Figure(figsize=(1.3 * columns, 1.45 * rows), layout='constrained')
  grid = page.subplots(rows, columns, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  for index, sample in enumerate(samples):
    band, column = divmod(index, columns)
    top = band * (1 + len(names))
    drawing.show_image(grid[top, column], sample.image)
    right = sample.predicted == sample.true
    grid[top, column].set_title(
      f'{sample.predicted} ({sample.probability:.0%})'
      + ('' if right else f'\ntrue: {sample.true}'),
      fontsize=8,
      color='green' if right else 'red',
    )
    for row, name in enumerate(names, start=top + 1):
      drawing.show_attention(grid[row, column], sample.image, sample.attention[name])
      if column == 0:
        grid[row, column].set_title(name, fontsize=7, loc='left')
  drawing.save(page, path)


def classified_image(
  path: epath.Path,
  image: np.ndarray | Image.Image,
  classes: Sequence[tuple[str, float]],
  attention: Mapping[str, attention_maps.Attention],
) -> None:
  """Draws an image, its attention maps and a bar chart of its best classes.

  Args:
    path: of the PNG.
    image: `[height, width, channels]` in [0, 1], or a PIL image.
    classes: names and probabilities, best first.
    attention: named maps over the image.
  """
  panels = 2 + len(attention)
  page = figure.Figure(figsize=(3 * panels, 3), layout='constrained')
  axes = page.subplots(1, panels)
  drawing.show_image(axes[0], image)
  for panel, (name, shown) in zip(axes[1:-1], attention.items(), strict=True):
    drawing.show_attention(panel, image, shown)
    panel.set_title(name, fontsize=8)
  names, probabilities = zip(*classes, strict=True)
  bars = axes[-1].barh(range(len(names)), probabilities)
  axes[-1].bar_label(bars, [f'{probability:.1%}' for probability in probabilities], padding=2)
  axes[-1].set_yticks(range(len(names)), names)
  axes[-1].invert_yaxis()
  axes[-1].set_xlim(0, 1.15)
  axes[-1].set_xlabel('probability')
  drawing.save(page, path)
