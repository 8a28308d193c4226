"""Pictures of pairs: both images with their objects, and where these look in the other image."""

from collections.abc import Sequence
import dataclasses

from etils import epath, epy
import numpy as np

from crossattn_jax.tasks import attention_maps, drawing
from crossattn_jax.tasks.detection import pictures

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import patches


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
  page, axes = drawing.panels(2 + 2 * len(sample.looks), tall, most=2, bars=bool(sample.looks))
  for panel, title, image in zip(
    axes[:2], ('RGB', 'thermal'), (sample.rgb, sample.thermal), strict=True
  ):
    drawing.show_image(panel, pictures.overlaid(image, sample.found, class_names))
    panel.set_title(title, fontsize=drawing.TEXT)
  for panels, look in zip(axes[2:].reshape(-1, 2), sample.looks, strict=True):
    for panel, title, image, weights in zip(
      panels,
      ('where its place in thermal looks in RGB', 'where its place in RGB looks in thermal'),
      (sample.rgb, sample.thermal),
      (look.rgb, look.thermal),
      strict=True,
    ):
      shown = drawing.show_attention(panel, image, attention_maps.Attention(weights, look.query))
      (x, y), (across, down) = look.box[:2] - 0.5, look.box[2:] - look.box[:2]
      panel.add_patch(patches.Rectangle((x, y), across, down, fill=False, edgecolor='white'))
      panel.set_title(f'{look.title}: {title}', fontsize=drawing.TEXT)
      drawing.add_bar(page, shown, [panel], shrink=0.9)
  caption = pictures.caption(true_is_known=False)
  if sample.looks:
    caption += f' Below, for the best of them: {drawing.LOOKING[0].lower()}{drawing.LOOKING[1:]}'
    caption += ' The white frame is the object, the cyan one the place that looks.'
  drawing.save(page, path, caption)


def sheet(path: epath.Path, samples: Sequence[Sample], class_names: Sequence[str]) -> None:
  """Draws pairs in columns: both images with what was found, then with what is there, if known.

  Args:
    path: of the PNG.
    samples: at least one.
    class_names: in the order of the labels.
  """
  kinds = ['found'] if samples[0].true is None else ['found', 'true']
  titles = [f'{kind}, in {modality}' for kind in kinds for modality in ('RGB', 'thermal')]
  tall = samples[0].rgb.shape[0] / samples[0].rgb.shape[1]
  page, grid = drawing.columns(
    len(samples), len(titles), pictures.ACROSS, tall, lines=1 + bool(samples[0].name)
  )
  for axes, sample in zip(grid, samples, strict=True):
    panels = [
      pictures.overlaid(image, getattr(sample, kind), class_names, pictures.ACROSS)
      for kind in kinds
      for image in (sample.rgb, sample.thermal)
    ]
    for panel, picture in zip(axes, panels, strict=True):
      drawing.show_image(panel, picture)
    axes[0].set_title(drawing.shortened(sample.name, 28), fontsize=drawing.SMALL)
  drawing.name_panels(grid, titles, pictures.ACROSS)
  marked = samples[0].found.wrong is not None
  drawing.save(page, path, pictures.caption(samples[0].true is not None, marked))
