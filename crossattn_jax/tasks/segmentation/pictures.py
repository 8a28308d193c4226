"""Pictures of classes of pixels: overlays and sheets."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath, epy
import numpy as np
from PIL import Image

from crossattn_jax.tasks import attention_maps, drawing

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure, patches

# More classes than this do not fit below a picture; the most frequent ones are named.
_LEGEND_ENTRIES = 16
_OPACITY = 0.6


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
  """The image seen through the colours of its classes, which may have another size."""
  if image.shape[:2] != classes.shape:
    image = np.asarray(Image.fromarray(image).resize(classes.shape[::-1]))
  colored = _colors(palette)[classes.astype(np.uint8)]
  return np.rint((1 - _OPACITY) * image + _OPACITY * colored).astype(np.uint8)


def _legend(
  page: 'figure.Figure', shown: Sequence[np.ndarray], names: Sequence[str], palette: np.ndarray
) -> None:
  """Names the most frequent of the classes that occur, with their colours."""
  counts = sum(np.bincount(classes.ravel(), minlength=256) for classes in shown)[: len(names)]
  frequent = np.argsort(-counts, kind='stable')[:_LEGEND_ENTRIES]
  page.legend(
    handles=[
      patches.Patch(facecolor=palette[index] / 255, edgecolor='black', label=names[index])
      for index in sorted(frequent)
      if counts[index]
    ],
    loc='outside lower center',
    ncols=8,
    fontsize=8,
  )


def overlay(path: epath.Path, sample: Sample, names: Sequence[str], palette: np.ndarray) -> None:
  """Draws an image, its classes laid over it with a legend, and attention maps.

  Args:
    path: of the PNG.
    sample: what is drawn.
    names: of the classes.
    palette: of the classes, uint8 `[classes, 3]`.
  """
  tall = sample.image.shape[0] / sample.image.shape[1]
  page, axes = drawing.panels(2 + len(sample.attention), (4.2, 4.2 * tall + 0.2), below=0.6)
  drawing.show_image(axes[0], sample.image)
  drawing.show_image(axes[1], _laid_over(sample.image, sample.predicted, palette))
  for panel, (name, shown) in zip(axes[2:], sample.attention.items(), strict=True):
    drawing.show_attention(panel, sample.seen, shown)
    panel.set_title(name, fontsize=8)
  _legend(page, [sample.predicted], names, palette)
  drawing.save(page, path)


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
  titles = ['image', 'predicted', 'true']
  if samples[0].true is None:
    titles.remove('true')
  page, grid = drawing.columns(len(samples), len(titles), (1.9, 1.9), below=0.6)
  for axes, sample in zip(grid, samples, strict=True):
    drawing.show_image(axes[0], sample.image)
    axes[0].set_title(drawing.shortened(sample.name), fontsize=8, loc='right')
    drawing.show_image(axes[1], _laid_over(sample.image, sample.predicted, palette))
    if sample.true is not None:
      counted = sample.true != 255
      right = (sample.predicted == sample.true)[counted].mean() if counted.any() else np.nan
      axes[1].set_title(f'{right:.1%} right', fontsize=8, loc='right')
      drawing.show_image(axes[2], _laid_over(sample.image, sample.true, palette))
  drawing.name_panels(grid, titles)
  _legend(page, [sample.predicted for sample in samples], names, palette)
  drawing.save(page, path)
