"""Pictures of sounds."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath, epy
import numpy as np

from crossattn_jax.tasks import attention_maps, drawing

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure


@dataclasses.dataclass(frozen=True)
class Clip:
  """A sound to be shown.

  Attributes:
    spectrogram: `[mel bins, frames]`, low frequencies first.
    seconds: of the spectrogram.
    scores: names and scores of classes, best first.
    true: names of its classes; None where they are not known.
    attention: named maps over the spectrogram.
    name: of the file, for sheets; '' where it has none.
  """

  spectrogram: np.ndarray
  seconds: float
  scores: Sequence[tuple[str, float]]
  true: Sequence[str] | None
  attention: Mapping[str, attention_maps.Attention]
  name: str = ''


def _show_spectrogram(axes, clip: Clip, attention: attention_maps.Attention | None = None) -> None:
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
  page = figure.Figure(figsize=(9, 1.6 * rows), layout='constrained')
  grid = page.add_gridspec(rows, 3)
  first = page.add_subplot(grid[0, :2])
  _show_spectrogram(first, clip)
  first.set_ylabel('mel bin', fontsize=7)
  last = first
  for row, (name, attention) in enumerate(clip.attention.items(), start=1):
    last = page.add_subplot(grid[row, :2])
    _show_spectrogram(last, clip, attention)
    last.set_title(name, fontsize=7, loc='left')
  last.set_xlabel('seconds', fontsize=7)
  bars = page.add_subplot(grid[:, 2])
  names, scores = zip(*clip.scores, strict=True)
  drawn = bars.barh(range(len(names)), scores)
  bars.bar_label(drawn, [f'{score:.1%}' for score in scores], padding=2, fontsize=7)
  bars.set_yticks(range(len(names)), names, fontsize=7)
  bars.invert_yaxis()
  bars.set_xlim(0, 1.2)
  bars.set_xlabel('score', fontsize=7)
  drawing.save(page, path)


def sheet(path: epath.Path, clips: Sequence[Clip], columns: int = 4) -> None:
  """Draws clips with the classes that score above one half, and their true ones.

  Args:
    path: of the PNG.
    clips: at least one.
    columns: clips per row.
  """
  rows = -(-len(clips) // columns)
  page = figure.Figure(figsize=(2.8 * columns, 2.2 * rows), layout='constrained')
  grid = page.subplots(rows, columns, squeeze=False)
  for axes in grid.flat[len(clips) :]:
    axes.set_axis_off()
  for axes, clip in zip(grid.flat, clips, strict=False):
    _show_spectrogram(axes, clip)
    found = [name for name, score in clip.scores if score > 0.5]
    title, color = ', '.join(found), 'black'
    if clip.true is not None:
      color = 'green' if set(found) == set(clip.true) else 'red'
    if color == 'red':
      title += f'\ntrue: {", ".join(clip.true)}'
    if clip.name:
      title += f'\n{drawing.shortened(clip.name)}'
    axes.set_title(title, fontsize=7, color=color)
  drawing.save(page, path)
