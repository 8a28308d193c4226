"""Figures of predictions, drawn with matplotlib and without a display."""

from collections.abc import Mapping, Sequence
import dataclasses
import io

from etils import epath, epy
from flax import linen as nn
import jax
import numpy as np
from PIL import Image

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure, patches


@dataclasses.dataclass(frozen=True)
class Attention:
  """Where something in an image looks.

  Attributes:
    weights: `[rows, columns]` over the image.
    query: what looks, of the same shape, not zero there; None where it has no place in the image,
      as a class token has none.
  """

  weights: np.ndarray
  query: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
  """An evaluation example to be shown.

  Attributes:
    image: `[height, width, channels]` in [0, 1].
    predicted: name of the most probable class.
    true: name of the true class.
    probability: of the predicted class.
    attention: named maps over the image.
  """

  image: np.ndarray
  predicted: str
  true: str
  probability: float
  attention: Mapping[str, Attention]


def attention_outputs(model: nn.Module, features: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Attention maps `[batch, rows, columns]` of a model's features, where it has any. Inside jit.

  Returns:
    'attention_maps/NAME', and where what looks has a place 'attention_queries/NAME', of the model's
    methods `attention_maps(features)` and `attention_queries(features)`.
  """
  return {
    f'{kind}/{name}': values
    for kind in ('attention_maps', 'attention_queries')
    if hasattr(model, kind)
    for name, values in getattr(model, kind)(features).items()
  }


def attention_of(outputs: Mapping[str, np.ndarray], row: int) -> dict[str, Attention]:
  """The maps of one example among `attention_outputs`, by name."""
  prefix = 'attention_maps/'
  shown = {}
  for name in (key.removeprefix(prefix) for key in outputs if key.startswith(prefix)):
    query = outputs.get(f'attention_queries/{name}')
    shown[name] = Attention(outputs[prefix + name][row], None if query is None else query[row])
  return shown


def unused_name(name: str, used: set[str]) -> str:
  """The name, or with a number where it is among `used`, to which the result is added."""
  number, candidate = 1, name
  while candidate in used:
    number += 1
    candidate = f'{name}_{number}'
  used.add(candidate)
  return candidate


def save(sheet: 'figure.Figure', path: epath.Path) -> None:
  """Writes a PNG; the path may be in a bucket, which matplotlib cannot open."""
  buffer = io.BytesIO()
  sheet.savefig(buffer, format='png', dpi=120)
  path.write_bytes(buffer.getvalue())


def show_image(axes, image: np.ndarray | Image.Image) -> None:
  """Draws an image, floats in [0, 1], without axes."""
  pixels = np.asarray(image)
  if pixels.ndim == 3 and pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  limits = {'vmin': 0, 'vmax': 1} if pixels.dtype.kind == 'f' else {}
  axes.imshow(pixels, cmap='gray', **limits)
  axes.set_axis_off()


def show_attention(axes, image: np.ndarray | Image.Image, attention: Attention) -> None:
  """Lays the map over the whole image; its largest weight is bright, the query has a frame."""
  show_image(axes, image)
  height, width = np.asarray(image).shape[:2]
  axes.imshow(
    attention.weights,
    cmap='inferno',
    alpha=0.6,
    interpolation='bilinear' if attention.query is None else 'nearest',
    extent=(-0.5, width - 0.5, height - 0.5, -0.5),
  )
  if attention.query is None:
    return
  rows, columns = np.nonzero(attention.query)
  down, right = height / attention.query.shape[0], width / attention.query.shape[1]
  axes.add_patch(
    patches.Rectangle(
      (columns.min() * right - 0.5, rows.min() * down - 0.5),
      (np.ptp(columns) + 1) * right,
      (np.ptp(rows) + 1) * down,
      fill=False,
      edgecolor='cyan',
      linewidth=1.5,
    )
  )


def classification_sheet(path: epath.Path, samples: Sequence[Sample], columns: int = 8) -> None:
  """Draws examples in rows: the image with its classes, below it each attention map.

  Args:
    path: of the PNG.
    samples: all with the same names of maps.
    columns: examples per row.
  """
  names = list(samples[0].attention)
  bands = -(-len(samples) // columns)
  rows = bands * (1 + len(names))
  sheet = figure.Figure(figsize=(1.3 * columns, 1.45 * rows), layout='constrained')
  grid = sheet.subplots(rows, columns, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  for index, sample in enumerate(samples):
    band, column = divmod(index, columns)
    top = band * (1 + len(names))
    show_image(grid[top, column], sample.image)
    right = sample.predicted == sample.true
    grid[top, column].set_title(
      f'{sample.predicted} ({sample.probability:.0%})'
      + ('' if right else f'\ntrue: {sample.true}'),
      fontsize=8,
      color='green' if right else 'red',
    )
    for row, name in enumerate(names, start=top + 1):
      show_attention(grid[row, column], sample.image, sample.attention[name])
      if column == 0:
        grid[row, column].set_title(name, fontsize=7, loc='left')
  save(sheet, path)


def classified_image(
  path: epath.Path,
  image: np.ndarray | Image.Image,
  classes: Sequence[tuple[str, float]],
  attention: Mapping[str, Attention],
) -> None:
  """Draws an image, its attention maps and a bar chart of its best classes.

  Args:
    path: of the PNG.
    image: `[height, width, channels]` in [0, 1], or a PIL image.
    classes: names and probabilities, best first.
    attention: named maps over the image.
  """
  panels = 2 + len(attention)
  sheet = figure.Figure(figsize=(3 * panels, 3), layout='constrained')
  axes = sheet.subplots(1, panels)
  show_image(axes[0], image)
  for panel, (name, shown) in zip(axes[1:-1], attention.items(), strict=True):
    show_attention(panel, image, shown)
    panel.set_title(name, fontsize=8)
  names, probabilities = zip(*classes, strict=True)
  bars = axes[-1].barh(range(len(names)), probabilities)
  axes[-1].bar_label(bars, [f'{probability:.1%}' for probability in probabilities], padding=2)
  axes[-1].set_yticks(range(len(names)), names)
  axes[-1].invert_yaxis()
  axes[-1].set_xlim(0, 1.15)
  axes[-1].set_xlabel('probability')
  save(sheet, path)


@dataclasses.dataclass(frozen=True)
class Clip:
  """A sound to be shown.

  Attributes:
    spectrogram: `[mel bins, frames]`, low frequencies first.
    seconds: of the spectrogram.
    scores: names and scores of classes, best first.
    true: names of its classes; None where they are not known.
    attention: named maps over the spectrogram.
  """

  spectrogram: np.ndarray
  seconds: float
  scores: Sequence[tuple[str, float]]
  true: Sequence[str] | None
  attention: Mapping[str, Attention]


def _show_spectrogram(axes, clip: Clip, attention: Attention | None = None) -> None:
  extent = (0, clip.seconds, 0, len(clip.spectrogram))
  place = {'origin': 'lower', 'aspect': 'auto', 'extent': extent}
  if attention is None:
    axes.imshow(clip.spectrogram, cmap='viridis', **place)
  else:
    axes.imshow(clip.spectrogram, cmap='gray', **place)
    axes.imshow(attention.weights, cmap='inferno', alpha=0.6, interpolation='bilinear', **place)
  axes.tick_params(labelsize=6)


def audio_clip(path: epath.Path, clip: Clip) -> None:
  """Draws a clip's spectrogram, its attention maps below it, and a bar chart of its best classes.

  Args:
    path: of the PNG.
    clip: what is drawn.
  """
  rows = 1 + len(clip.attention)
  sheet = figure.Figure(figsize=(9, 1.6 * rows), layout='constrained')
  grid = sheet.add_gridspec(rows, 3)
  first = sheet.add_subplot(grid[0, :2])
  _show_spectrogram(first, clip)
  first.set_ylabel('mel bin', fontsize=7)
  last = first
  for row, (name, attention) in enumerate(clip.attention.items(), start=1):
    last = sheet.add_subplot(grid[row, :2])
    _show_spectrogram(last, clip, attention)
    last.set_title(name, fontsize=7, loc='left')
  last.set_xlabel('seconds', fontsize=7)
  bars = sheet.add_subplot(grid[:, 2])
  names, scores = zip(*clip.scores, strict=True)
  drawn = bars.barh(range(len(names)), scores)
  bars.bar_label(drawn, [f'{score:.1%}' for score in scores], padding=2, fontsize=7)
  bars.set_yticks(range(len(names)), names, fontsize=7)
  bars.invert_yaxis()
  bars.set_xlim(0, 1.2)
  bars.set_xlabel('score', fontsize=7)
  save(sheet, path)


def audio_sheet(path: epath.Path, clips: Sequence[Clip], columns: int = 4) -> None:
  """Draws clips with the classes that score above one half, and their true ones.

  Args:
    path: of the PNG.
    clips: at least one.
    columns: clips per row.
  """
  rows = -(-len(clips) // columns)
  sheet = figure.Figure(figsize=(2.8 * columns, 2.2 * rows), layout='constrained')
  grid = sheet.subplots(rows, columns, squeeze=False)
  for axes in grid.flat[len(clips) :]:
    axes.set_axis_off()
  for axes, clip in zip(grid.flat, clips, strict=False):
    _show_spectrogram(axes, clip)
    found = [name for name, score in clip.scores if score > 0.5]
    right = clip.true is None or set(found) == set(clip.true)
    axes.set_title(
      ', '.join(found) + ('' if right else f'\ntrue: {", ".join(clip.true)}'),
      fontsize=7,
      color='green' if right else 'red',
    )
  save(sheet, path)
