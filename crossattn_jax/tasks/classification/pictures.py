"""Pictures of classified images."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath
import numpy as np
from PIL import Image

from crossattn_jax.tasks import attention_maps, drawing


@dataclasses.dataclass(frozen=True)
class Sample:
  """A classified image.

  Attributes:
    image: `[height, width, channels]`, bytes or in [0, 1], or a PIL image.
    classes: names and probabilities, best first.
    true: names of the true classes, mostly one; None where they are not known.
    attention: named maps over the image.
    name: of the file, for sheets; '' where it has none.
  """

  image: np.ndarray | Image.Image
  classes: Sequence[tuple[str, float]]
  true: Sequence[str] | None
  attention: Mapping[str, attention_maps.Attention]
  name: str = ''


def sheet(path: epath.Path, samples: Sequence[Sample]) -> None:
  """Draws examples in columns: the image with its class, below it each attention map.

  Args:
    path: of the PNG.
    samples: all with the same names of maps.
  """
  names = list(samples[0].attention)
  page, grid = drawing.columns(len(samples), 1 + len(names), (1.3, 1.45))
  for axes, sample in zip(grid, samples, strict=True):
    predicted, probability = sample.classes[0]
    title, color = f'{predicted} ({probability:.0%})', 'black'
    if sample.true is not None:
      color = 'green' if predicted in sample.true else 'red'
    if color == 'red':
      title += f'\ntrue: {", ".join(sample.true) or "none"}'
    if sample.name:
      title += f'\n{drawing.shortened(sample.name)}'
    drawing.show_image(axes[0], sample.image)
    axes[0].set_title(title, fontsize=8, color=color)
    for panel, name in zip(axes[1:], names, strict=True):
      drawing.show_attention(panel, sample.image, sample.attention[name])
  drawing.name_panels(grid[:, 1:], names)
  drawing.save(page, path)


def classified_image(path: epath.Path, sample: Sample) -> None:
  """Draws an image, its attention maps and a bar chart of its best classes.

  Args:
    path: of the PNG.
    sample: what is drawn.
  """
  page, axes = drawing.panels(2 + len(sample.attention), (3, 3))
  drawing.show_image(axes[0], sample.image)
  for panel, (name, shown) in zip(axes[1:-1], sample.attention.items(), strict=True):
    drawing.show_attention(panel, sample.image, shown)
    panel.set_title(name, fontsize=8)
  names, probabilities = zip(*sample.classes, strict=True)
  bars = axes[-1].barh(range(len(names)), probabilities)
  axes[-1].bar_label(bars, [f'{probability:.1%}' for probability in probabilities], padding=2)
  axes[-1].set_yticks(range(len(names)), names)
  axes[-1].invert_yaxis()
  axes[-1].set_xlim(0, 1.15)
  axes[-1].set_xlabel('probability')
  drawing.save(page, path)
