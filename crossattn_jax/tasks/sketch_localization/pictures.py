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


def overlaid(
  sample: Sample, objects: pictures.Objects, class_names: Sequence[str], across: int = 1
) -> Image.Image:
  """The image with objects, and the sketches in the corner where they hide least.

  See `detection.pictures.overlaid`.
  """
  picture = pictures.overlaid(sample.image, objects, class_names, across)
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
  half = drawing.WIDTH / 2
  size = (drawing.WIDTH, max(tall, 0.5) * half + 0.3)
  page = figure.Figure(figsize=size, layout='constrained')
  left, right = page.subfigures(1, 2)
  axes = left.subplots()
  drawing.show_image(axes, overlaid(sample, sample.found, class_names))
  axes.set_title(f'what the sketch shows: {len(sample.found.boxes)} found', fontsize=drawing.TEXT)
  # Of the published four stages, two beside two.
  panels = right.subplots(-(-len(sample.looks) // 2), 2, squeeze=False)
  panels.flat[-1].set_axis_off()  # Empty where their number is odd.
  between = drawing.limits(sample.looks.values())
  for stage, (panel, weights) in enumerate(
    zip(panels.flat, sample.looks.values(), strict=False), start=1
  ):
    attention = attention_maps.Attention(weights)
    shown = drawing.show_attention(panel, sample.image, attention, between)
    panel.set_title(f'before stage {stage}', fontsize=drawing.TEXT)
  drawing.add_bar(right, shown, panels.flat, aspect=30, extend='max')
  drawing.save(
    page,
    path,
    'Left, the photo with its objects that the sketch in the corner shows, each with a score from '
    '0 to 1. Right, how much each place of the photo looks at the lines of the sketch before a '
    'stage of the network: 1 where it looks at all of the sketch alike.',
  )


def sheet(path: epath.Path, samples: Sequence[Sample], class_names: Sequence[str]) -> None:
  """Draws examples in columns: the image, its objects as found, the true ones if known.

  Args:
    path: of the PNG.
    samples: at least one.
    class_names: in the order of the labels.
  """
  pictures.sheet(path, samples, class_names, overlaid)
