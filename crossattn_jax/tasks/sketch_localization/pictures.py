"""Pictures of what sketches find: objects in an image, the sketches in its corner."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath, epy
import numpy as np
from PIL import Image, ImageOps

from crossattn_jax.tasks import attention_maps, drawing
from crossattn_jax.tasks.detection import pictures

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure

# Of a picture's shorter side: a sketch, of its width: all of them, at most.
_SKETCH, _SKETCHES = 0.28, 0.6
_MOST_SKETCHES = 10
_WIDTH = 5.0  # Of the image, in inches.
_BAR = 0.9  # Of the colour bar.


@dataclasses.dataclass(frozen=True)
class Sample(pictures.Sample):
  """An image, its objects, and what was searched for.

  Attributes:
    sketches: as the network sees them, uint8 `[sketches, size, size, 3]`.
    looks: how much places of the image look at the lines of the sketches, `[rows, columns]` over
      the image by name; 1 where they look at all of a sketch alike.
  """

  sketches: np.ndarray = ()
  looks: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def overlaid(sample: Sample, objects: pictures.Objects, class_names: Sequence[str]) -> Image.Image:
  """The image with objects, and the sketches in the corner where they hide least."""
  picture = pictures.overlaid(sample.image, objects, class_names)
  sketches = sample.sketches[:_MOST_SKETCHES]
  widest = _SKETCHES * picture.width / len(sketches)
  side = round(min(_SKETCH * min(picture.size), widest))
  strip = Image.new('RGB', (side * len(sketches), side))
  for number, sketch in enumerate(sketches):
    framed = ImageOps.expand(Image.fromarray(sketch).resize((side - 4, side - 4)), 2, 'orange')
    strip.paste(framed, (number * side, 0))
  corners = [(x, y) for y in (picture.height - side, 0) for x in (picture.width - strip.width, 0)]
  boxes = objects.boxes * (picture.width / sample.image.shape[1])
  picture.paste(strip, min(corners, key=lambda corner: _hidden(corner, strip.size, boxes)))
  return picture


def _hidden(corner: tuple[int, int], size: tuple[int, int], boxes: np.ndarray) -> float:
  """How much of the boxes a rectangle hides, the sum of the parts of each."""
  low = np.maximum(boxes[:, :2], corner)
  high = np.minimum(boxes[:, 2:], np.add(corner, size))
  shares = np.maximum(high - low, 0) / np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
  return float(shares.prod(axis=1).sum())


def found_and_looks(path: epath.Path, sample: Sample, class_names: Sequence[str]) -> None:
  """Draws the image with what was found, and beside it where it looks at the sketches' lines."""
  tall = sample.image.shape[0] / sample.image.shape[1]
  size = (2 * _WIDTH + _BAR, max(tall, 0.5) * _WIDTH + 0.4)
  page = figure.Figure(figsize=size, layout='constrained')
  left, right = page.subfigures(1, 2, width_ratios=(_WIDTH, _WIDTH + _BAR))
  axes = left.subplots()
  drawing.show_image(axes, overlaid(sample, sample.found, class_names))
  axes.set_title(f'what the sketch shows: {len(sample.found.boxes)} found', fontsize=10)
  # Of the published four stages, two beside two.
  panels = right.subplots(-(-len(sample.looks) // 2), 2, squeeze=False)
  panels.flat[-1].set_axis_off()  # Empty where their number is odd.
  values = np.concatenate([weights.ravel() for weights in sample.looks.values()])
  for panel, (name, weights) in zip(panels.flat, sample.looks.items(), strict=False):
    shown = drawing.show_attention(panel, sample.image, attention_maps.Attention(weights))
    shown.set_clim(values.min(), values.max())
    panel.set_title(f'before {name.replace("_", " ")}', fontsize=8)
  right.colorbar(shown, ax=panels, label='looks at lines of the sketch (1: at all of it alike)')
  drawing.save(page, path)


def sheet(path: epath.Path, samples: Sequence[Sample], class_names: Sequence[str]) -> None:
  """Draws examples in columns: the image, its objects as found, the true ones if known.

  Args:
    path: of the PNG.
    samples: at least one.
    class_names: in the order of the labels.
  """
  pictures.sheet(path, samples, class_names, overlaid)
