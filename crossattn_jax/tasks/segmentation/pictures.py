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
  """An evaluation example to be shown.

  Attributes:
    image: uint8 `[height, width, 3]`.
    predicted: classes `[rows, columns]`.
    true: classes of the same shape, 255 where there are none.
  """

  image: np.ndarray
  predicted: np.ndarray
  true: np.ndarray


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


def overlay(
  path: epath.Path,
  image: np.ndarray,
  classes: np.ndarray,
  names: Sequence[str],
  palette: np.ndarray,
  attention: tuple[np.ndarray, Mapping[str, attention_maps.Attention]] | None = None,
) -> None:
  """Draws an image, its classes laid over it with a legend, and attention maps.

  Args:
    path: of the PNG.
    image: uint8 `[height, width, 3]`.
    classes: `[height, width]`.
    names: of the classes.
    palette: of the classes, uint8 `[classes, 3]`.
    attention: what the network saw, and its named maps over it.
  """
  maps = attention[1] if attention else {}
  panels = 2 + len(maps)
  tall = image.shape[0] / image.shape[1]
  page = figure.Figure(figsize=(4.2 * panels, 4.2 * tall + 0.8), layout='constrained')
  axes = page.subplots(1, panels)
  drawing.show_image(axes[0], image)
  drawing.show_image(axes[1], _laid_over(image, classes, palette))
  for panel, (name, shown) in zip(axes[2:], maps.items(), strict=True):
    drawing.show_attention(panel, attention[0], shown)
    panel.set_title(name, fontsize=8)
  _legend(page, [classes], names, palette)
  drawing.save(page, path)


def sheet(
  path: epath.Path, samples: Sequence[Sample], names: Sequence[str], palette: np.ndarray
) -> None:
  """Draws examples in columns: the image, the predicted classes, the true ones.

  Args:
    path: of the PNG.
    samples: at least one.
    names: of the classes.
    palette: of the classes, uint8 `[classes, 3]`.
  """
  page = figure.Figure(figsize=(1.9 * len(samples), 6.3), layout='constrained')
  grid = page.subplots(3, len(samples), squeeze=False)
  for column, sample in enumerate(samples):
    counted = sample.true != 255
    right = (sample.predicted == sample.true)[counted].mean() if counted.any() else np.nan
    drawing.show_image(grid[0, column], sample.image)
    drawing.show_image(grid[1, column], _laid_over(sample.image, sample.predicted, palette))
    drawing.show_image(grid[2, column], _laid_over(sample.image, sample.true, palette))
    grid[1, column].set_title(f'{right:.1%} right', fontsize=8, loc='right')
  for row, title in enumerate(('image', 'predicted', 'true')):
    grid[row, 0].set_title(title, fontsize=8, loc='left')
  _legend(page, [sample.predicted for sample in samples], names, palette)
  drawing.save(page, path)
