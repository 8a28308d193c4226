"""Pictures of pairs: both images with their objects, and where these look in the other image."""

from collections.abc import Sequence
import dataclasses

from etils import epath, epy
import numpy as np

from crossattn_jax.tasks import attention_maps, drawing
from crossattn_jax.tasks.detection import pictures

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure, patches

_WIDTH = 5.0  # Of an image, in inches.
_BAR = 0.9  # Of a colour bar.


@dataclasses.dataclass(frozen=True)
class Look:
  """Where the place of an object looks, each modality over the other one.

  Attributes:
    title: of the object.
    box: of the object, corners in pixels of the images.
    rgb: weights over the RGB image, times the number of pixels: 1 where all weigh the same.
    thermal: likewise over the thermal image.
    query: what asks, not zero there.
  """

  title: str
  box: np.ndarray
  rgb: np.ndarray
  thermal: np.ndarray
  query: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sample:
  """A pair and its objects.

  Attributes:
    rgb: uint8 `[height, width, 3]`.
    thermal: likewise.
    found: what is drawn.
    true: what is there; None where that is not known.
    looks: where objects look.
    name: of the RGB file, for sheets; '' where it has none.
  """

  rgb: np.ndarray
  thermal: np.ndarray
  found: pictures.Objects
  true: pictures.Objects | None = None
  looks: Sequence[Look] = ()
  name: str = ''


def side_by_side(path: epath.Path, sample: Sample, class_names: Sequence[str]) -> None:
  """Draws both images with what was found, and below them a row for each that looks."""
  tall = sample.rgb.shape[0] / sample.rgb.shape[1]
  rows = 1 + len(sample.looks)
  width = _WIDTH + _BAR * bool(sample.looks)
  page = figure.Figure(figsize=(2 * width, rows * (_WIDTH * tall + 0.3)), layout='constrained')
  first, *others = page.subplots(rows, 2, squeeze=False)
  for axes, title, image in zip(
    first, ('RGB', 'thermal'), (sample.rgb, sample.thermal), strict=True
  ):
    drawing.show_image(axes, pictures.overlaid(image, sample.found, class_names))
    axes.set_title(title, fontsize=10)
  for panels, look in zip(others, sample.looks, strict=True):
    for axes, direction, image, weights in zip(
      panels,
      ('thermal asks RGB', 'RGB asks thermal'),
      (sample.rgb, sample.thermal),
      (look.rgb, look.thermal),
      strict=True,
    ):
      shown = drawing.show_attention(axes, image, attention_maps.Attention(weights, look.query))
      shown.set_clim(0, max(1.0, float(weights.max())))
      (x, y), (across, down) = look.box[:2] - 0.5, look.box[2:] - look.box[:2]
      axes.add_patch(patches.Rectangle((x, y), across, down, fill=False, edgecolor='white'))
      axes.set_title(f'{look.title}: {direction}', fontsize=10)
      page.colorbar(shown, ax=axes, shrink=0.9, label='attention (1: all pixels alike)')
  drawing.save(page, path)


def sheet(path: epath.Path, samples: Sequence[Sample], class_names: Sequence[str]) -> None:
  """Draws pairs in columns: both images with what was found, then with what is there, if known.

  Args:
    path: of the PNG.
    samples: at least one.
    class_names: in the order of the labels.
  """
  kinds = ['found'] if samples[0].true is None else ['found', 'true']
  titles = [f'{kind}, {modality}' for kind in kinds for modality in ('RGB', 'thermal')]
  page, grid = drawing.columns(len(samples), len(titles), (3.2, 2.7), most=4)
  for axes, sample in zip(grid, samples, strict=True):
    panels = [
      pictures.overlaid(image, getattr(sample, kind), class_names)
      for kind in kinds
      for image in (sample.rgb, sample.thermal)
    ]
    for panel, picture in zip(axes, panels, strict=True):
      drawing.show_image(panel, picture)
    axes[0].set_title(drawing.shortened(sample.name), fontsize=8, loc='right')
  drawing.name_panels(grid, titles, most=4)
  drawing.save(page, path)
