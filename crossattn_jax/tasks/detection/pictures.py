"""Pictures of objects: one image with all of its own, and sheets of images."""

from collections.abc import Callable, Sequence
import dataclasses

from etils import epath
import numpy as np
from PIL import Image

from crossattn_jax.geometry import mask_pasting
from crossattn_jax.tasks import drawing
from crossattn_jax.tasks.detection import overlay


@dataclasses.dataclass(frozen=True)
class Objects:
  """The objects of an image, in its pixels, best first.

  Attributes:
    boxes: corners, `[n, 4]`.
    labels: classes, int `[n]`.
    scores: `[n]`; None where they are true.
    masks: probabilities of the cells of each box `[n, side, side]`, or pixels of the image, bool
      `[n, height, width]`; None where there are none.
  """

  boxes: np.ndarray
  labels: np.ndarray
  scores: np.ndarray | None = None
  masks: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
  """An image and its objects.

  Attributes:
    image: uint8 `[height, width, 3]`.
    found: what is drawn.
    true: what is there; None where that is not known.
    name: of the file, for sheets; '' where it has none.
  """

  image: np.ndarray
  found: Objects
  true: Objects | None = None
  name: str = ''


def overlaid(image: np.ndarray, objects: Objects, class_names: Sequence[str]) -> Image.Image:
  """The image, small ones enlarged, with boxes, classes, scores and masks of its objects."""
  canvas, factor = overlay.resized(Image.fromarray(image))
  names = [class_names[label] for label in objects.labels]
  if objects.scores is not None:
    names = [f'{name} {score:.2f}' for name, score in zip(names, objects.scores, strict=True)]
  boxes, masks = objects.boxes * factor, objects.masks
  if masks is not None and masks.dtype == bool:
    masks = [np.asarray(Image.fromarray(mask).resize(canvas.size)) for mask in masks]
  elif masks is not None:
    masks = mask_pasting.paste_masks(masks, boxes, canvas.size[::-1])
  colors = overlay.colors(len(class_names))[objects.labels]
  return overlay.draw(canvas, boxes, names, colors, masks)


def sheet(
  path: epath.Path,
  samples: Sequence[Sample],
  class_names: Sequence[str],
  picture: Callable[[Sample, Objects, Sequence[str]], Image.Image] | None = None,
) -> None:
  """Draws examples in columns: the image, its objects as found, the true ones if known.

  Args:
    path: of the PNG.
    samples: at least one.
    class_names: in the order of the labels.
    picture: of an example with objects; its image `overlaid` with them by default.
  """
  picture = picture or (lambda sample, *objects: overlaid(sample.image, *objects))
  titles = ['found'] if samples[0].true is None else ['found', 'true']
  page, grid = drawing.columns(len(samples), len(titles), (3.2, 3.2), most=4)
  for axes, sample in zip(grid, samples, strict=True):
    drawing.show_image(axes[0], picture(sample, sample.found, class_names))
    axes[0].set_title(drawing.shortened(sample.name), fontsize=8, loc='right')
    if sample.true is not None:
      drawing.show_image(axes[1], picture(sample, sample.true, class_names))
  drawing.name_panels(grid, titles, most=4)
  drawing.save(page, path)
