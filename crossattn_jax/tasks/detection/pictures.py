"""Pictures of objects: one image with all of its own, and sheets of images."""

from collections.abc import Callable, Sequence
import dataclasses

from etils import epath
import numpy as np
from PIL import Image

from crossattn_jax.geometry import mask_pasting
from crossattn_jax.tasks import drawing
from crossattn_jax.tasks.detection import overlay

ACROSS = 3  # Images beside each other on sheets.
_TEXT = 0.012  # Height of names, of the width of a page.
_WRONG_AND_RIGHT = (225, 30, 40), (50, 190, 90)


@dataclasses.dataclass(frozen=True)
class Objects:
  """The objects of an image, in its pixels, best first.

  Attributes:
    boxes: corners, `[n, 4]`.
    labels: classes, int `[n]`.
    scores: `[n]`; None where they are true.
    masks: probabilities of the cells of each box `[n, side, side]`, or pixels of the image, bool
      `[n, height, width]`; None where there are none.
    wrong: whether it is missed, or found falsely, bool `[n]`; None where nobody asks.
  """

  boxes: np.ndarray
  labels: np.ndarray
  scores: np.ndarray | None = None
  masks: np.ndarray | None = None
  wrong: np.ndarray | None = None


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


def overlaid(
  image: np.ndarray, objects: Objects, class_names: Sequence[str], across: int = 1
) -> Image.Image:
  """The image, small ones enlarged, with boxes, classes, scores and masks of its objects.

  Args:
    image: uint8 `[height, width, 3]`.
    objects: in its pixels.
    class_names: in the order of the labels.
    across: how many are beside each other on a page: names are as large as can be read there.

  Returns:
    A picture.
  """
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
  if objects.wrong is not None:
    colors = np.where(objects.wrong[:, None], *np.array(_WRONG_AND_RIGHT, np.uint8))
    what = 'missed' if objects.scores is None else 'false'
    names = [
      f'{what}: {name}' if wrong else name for name, wrong in zip(names, objects.wrong, strict=True)
    ]
  text = None if across == 1 else _TEXT * across * canvas.width
  return overlay.draw(canvas, boxes, names, colors, masks, text)


def sheet(
  path: epath.Path,
  samples: Sequence[Sample],
  class_names: Sequence[str],
  picture: Callable[..., Image.Image] | None = None,
) -> None:
  """Draws examples in columns: the image, its objects as found, the true ones if known.

  Args:
    path: of the PNG.
    samples: at least one.
    class_names: in the order of the labels.
    picture: of an example, objects, names and `across`; its image `overlaid` with them by default.
  """
  picture = picture or (lambda sample, *objects: overlaid(sample.image, *objects))
  titles = ['found'] if samples[0].true is None else ['found', 'true']
  page, grid = drawing.columns(len(samples), len(titles), ACROSS, lines=1 + bool(samples[0].name))
  for axes, sample in zip(grid, samples, strict=True):
    drawing.show_image(axes[0], picture(sample, sample.found, class_names, ACROSS))
    axes[0].set_title(drawing.shortened(sample.name, 28), fontsize=drawing.SMALL)
    if sample.true is not None:
      drawing.show_image(axes[1], picture(sample, sample.true, class_names, ACROSS))
  drawing.name_panels(grid, titles, ACROSS)
  marked = samples[0].found.wrong is not None
  drawing.save(page, path, caption(samples[0].true is not None, marked))


def caption(true_is_known: bool, marked: bool = False) -> str:
  """What a sheet shows, and the colours of objects that are right or wrong, if they have them."""
  text = 'The objects that the model finds: box, class, and score from 0 to 1'
  text += '; below them those that are there.' if true_is_known else '.'
  return f'{text} Red: false or missed; green: right.' if marked else text
