"""Pictures of classified images."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath
import numpy as np
from PIL import Image

from crossattn_jax.tasks import attention_maps, drawing

_ACROSS = 8  # Images beside each other on sheets.
_PANELS = 4  # Beside each other, of a single image.
_FEW_MAPS = 2  # With more, sheets have one row of images.


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
    samples: all with the same names of maps; of those with many, the first ones are drawn.
  """
  names = list(samples[0].attention)
  if len(names) > _FEW_MAPS:
    samples = samples[:_ACROSS]
  page, grid = drawing.columns(len(samples), 1 + len(names), _ACROSS, bars=bool(names))
  side = drawing.WIDTH / _ACROSS
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
    axes[0].set_title(drawing.wrapped(title, side), fontsize=drawing.TEXT, color=color)
  for panels, name in zip(grid[:, 1:].T, names, strict=True):
    maps = [sample.attention[name] for sample in samples]
    between = drawing.limits(attention.weights for attention in maps)
    for panel, sample, attention in zip(panels, samples, maps, strict=True):
      shown = drawing.show_attention(panel, sample.image, attention, between)
    if any(attention.is_graded for attention in maps):
      for panel in panels[::_ACROSS]:
        drawing.add_bar(page, shown, drawing.whole_row(panel), aspect=12, extend='max')
  drawing.name_panels(grid[:, 1:], names, _ACROSS)
  caption = 'Above each image the class that the model names, and its probability'
  if samples[0].true is not None:
    caption += ': green where it is right, red where it is wrong'
  drawing.save(page, path, f'{caption}. {drawing.looking(samples[0].attention.values())}')


def classified_image(path: epath.Path, sample: Sample) -> None:
  """Draws an image, its attention maps and a bar chart of its best classes.

  Args:
    path: of the PNG.
    sample: what is drawn.
  """
  count = 2 + len(sample.attention)
  width = drawing.WIDTH / min(count, _PANELS) - 0.5
  titles = [drawing.wrapped(name, width) for name in sample.attention]
  lines = 1 + max((title.count('\n') for title in titles), default=0)
  page, axes = drawing.panels(count, 1.0, _PANELS, lines, bars=bool(titles))
  drawing.show_image(axes[0], sample.image)
  axes[0].set_title('image', fontsize=drawing.TEXT)
  for panel, title, attention in zip(axes[1:-1], titles, sample.attention.values(), strict=True):
    shown = drawing.show_attention(panel, sample.image, attention)
    if attention.is_graded:
      drawing.add_bar(page, shown, [panel], shrink=0.8)
    panel.set_title(title, fontsize=drawing.TEXT)
  drawing.show_scores(axes[-1], sample.classes)
  caption = 'The best classes, and how sure the model is of each.'
  drawing.save(page, path, f'{caption} {drawing.looking(sample.attention.values())}')
