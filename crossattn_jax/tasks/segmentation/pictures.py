"""Pictures of classes of pixels: overlays and sheets."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath
import numpy as np
from PIL import Image

from crossattn_jax.tasks import attention_maps, drawing

_OPACITY = 0.7
_NO_CLASS = 255


@dataclasses.dataclass(frozen=True)
class Sample:
  """An image and the classes of its pixels.

  Attributes:
    image: uint8 `[height, width, 3]`.
    predicted: classes `[rows, columns]`.
    true: classes of the same shape, 255 where there are none; None where they are not known.
    seen: what the network saw, uint8; None without attention.
    attention: named maps over that.
    name: of the file, for sheets; '' where it has none.
  """

  image: np.ndarray
  predicted: np.ndarray
  true: np.ndarray | None
  seen: np.ndarray | None
  attention: Mapping[str, attention_maps.Attention]
  name: str = ''


def _colors(palette: np.ndarray) -> np.ndarray:
  """Colours of all bytes, uint8 `[256, 3]`; what is no class is black."""
  colors = np.zeros((256, 3), np.uint8)
  colors[: len(palette)] = palette
  return colors


def with_palette(classes: np.ndarray, palette: np.ndarray) -> Image.Image:
  """An image whose pixels are classes, uint8 `[height, width]`, and whose palette colours them."""
  image = Image.fromarray(classes)
  image.putpalette(_colors(palette).tobytes())
  return image


def _laid_over(image: np.ndarray, classes: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """The image in grey, seen through the colours of its classes; it may have another size."""
  if image.shape[:2] != classes.shape:
    image = np.asarray(Image.fromarray(image).resize(classes.shape[::-1]))
  grey = np.repeat(drawing.grey(image)[..., None], 3, axis=-1)
  colored = _seen_through(grey, _colors(palette)[classes.astype(np.uint8)])
  return np.where((classes == _NO_CLASS)[..., None], grey, np.rint(colored)).astype(np.uint8)


def _seen_through(grey: np.ndarray | float, colors: np.ndarray) -> np.ndarray:
  return (1 - _OPACITY) * grey + _OPACITY * colors


def _legend(page, shown: Sequence[np.ndarray], names: Sequence[str], palette: np.ndarray) -> None:
  """Names the classes that occur, and their colours as they are over a grey image."""
  present = np.unique(np.concatenate([np.ravel(classes) for classes in shown])).astype(int)
  colors = {
    names[index]: _seen_through(128.0, palette[index]) / 255
    for index in present
    if index < len(names)
  }
  if _NO_CLASS in present:
    colors['no class (grey image)'] = np.full(3, 0.9)
  drawing.legend(page, colors)


def overlay(path: epath.Path, sample: Sample, names: Sequence[str], palette: np.ndarray) -> None:
  """Draws an image, its classes laid over it with a legend, and attention maps.

  Args:
    path: of the PNG.
    sample: what is drawn.
    names: of the classes.
    palette: of the classes, uint8 `[classes, 3]`.
  """
  tall = sample.image.shape[0] / sample.image.shape[1]
  page, axes = drawing.panels(2 + len(sample.attention), tall, most=2, bars=bool(sample.attention))
  drawing.show_image(axes[0], sample.image)
  axes[0].set_title('image', fontsize=drawing.TEXT)
  drawing.show_image(axes[1], _laid_over(sample.image, sample.predicted, palette))
  axes[1].set_title('the class of each pixel', fontsize=drawing.TEXT)
  for panel, (name, attention) in zip(axes[2:], sample.attention.items(), strict=True):
    shown = drawing.show_attention(panel, sample.seen, attention)
    if attention.is_graded:
      drawing.add_bar(page, shown, [panel], shrink=0.9)
    panel.set_title(drawing.wrapped(name, drawing.WIDTH / 2), fontsize=drawing.TEXT)
  _legend(page, [sample.predicted], names, palette)
  caption = 'The classes are laid over the image in the colours below it.'
  drawing.save(page, path, f'{caption} {drawing.looking(sample.attention.values())}')


def sheet(
  path: epath.Path, samples: Sequence[Sample], names: Sequence[str], palette: np.ndarray
) -> None:
  """Draws examples in columns: the image, the predicted classes, the true ones if known.

  Args:
    path: of the PNG.
    samples: at least one.
    names: of the classes.
    palette: of the classes, uint8 `[classes, 3]`.
  """
  titles = ['images', 'predicted classes', 'true classes']
  if samples[0].true is None:
    titles.pop()
  page, grid = drawing.columns(len(samples), len(titles), lines=2)
  for axes, sample in zip(grid, samples, strict=True):
    drawing.show_image(axes[0], sample.image)
    axes[0].set_title(drawing.shortened(sample.name), fontsize=drawing.SMALL)
    drawing.show_image(axes[1], _laid_over(sample.image, sample.predicted, palette))
    if sample.true is not None:
      counted = sample.true != _NO_CLASS
      right = (sample.predicted == sample.true)[counted].mean() if counted.any() else np.nan
      axes[1].set_title(f'{right:.1%} right', fontsize=drawing.SMALL)
      drawing.show_image(axes[2], _laid_over(sample.image, sample.true, palette))
  drawing.name_panels(grid, titles)
  shown = [x for sample in samples for x in (sample.predicted, sample.true) if x is not None]
  _legend(page, shown, names, palette)
  caption = 'Each column is an image; the classes of its pixels are laid over it in colours.'
  if samples[0].true is not None:
    caption += ' Right: the share of the pixels whose predicted class is the true one.'
  drawing.save(page, path, caption)
