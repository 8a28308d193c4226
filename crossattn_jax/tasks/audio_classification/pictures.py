"""Pictures of sounds."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath, epy
import numpy as np

from crossattn_jax.data.audio import spectrogram
from crossattn_jax.tasks import attention_maps, drawing

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure

_TICKS = (250, 1000, 2000, 4000, 8000)  # Hertz.


@dataclasses.dataclass(frozen=True)
class Clip:
  """A sound to be shown.

  Attributes:
    spectrogram: `[mel bins, frames]` in decibels, low frequencies first.
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


def _show_spectrogram(axes, clip: Clip, attention: attention_maps.Attention | None = None):
  """Draws a clip, grey below a map of attention; returns what a colour bar is made for."""
  bins = len(clip.spectrogram)
  place = {'origin': 'lower', 'aspect': 'auto', 'extent': (0, clip.seconds, 0, bins)}
  shown = axes.imshow(clip.spectrogram, cmap='viridis' if attention is None else 'gray', **place)
  if attention is not None:
    shown = axes.imshow(
      attention.weights, cmap='inferno', alpha=0.6, interpolation='bilinear', **place
    )
  places = {f'{hertz:,}': spectrogram.position(hertz, bins) for hertz in _TICKS}
  places = {label: place for label, place in places.items() if 0 <= place <= bins}
  axes.set_yticks(list(places.values()), list(places))
  axes.tick_params(labelsize=drawing.SMALL - 1)
  axes.set_ylim(0, bins)
  return shown


def audio_clip(path: epath.Path, clip: Clip) -> None:
  """Draws a clip's spectrogram, its attention maps below it, and a bar chart of its best classes.

  Args:
    path: of the PNG.
    clip: what is drawn.
  """
  maps = {'the sound': None} | dict(clip.attention)
  page = figure.Figure(figsize=(drawing.WIDTH, 1.7 * max(len(maps), 2)), layout='constrained')
  grid = page.add_gridspec(len(maps), 3)
  for row, (name, attention) in enumerate(maps.items()):
    axes = page.add_subplot(grid[row, :2])
    shown = _show_spectrogram(axes, clip, attention)
    label = 'level (dB)' if attention is None else drawing.TIMES_AVERAGE
    drawing.add_bar(page, shown, [axes], label)
    axes.set_title(name, fontsize=drawing.TEXT, loc='left')
    axes.set_ylabel('Hz', fontsize=drawing.SMALL)
  axes.set_xlabel('seconds', fontsize=drawing.SMALL)
  drawing.show_scores(page.add_subplot(grid[:2, 2]), clip.scores)
  caption = (
    'How loud the sound is at which time and pitch, and how sure the model is of each class.'
  )
  drawing.save(page, path, f'{caption} {drawing.looking(clip.attention.values())}')


def sheet(path: epath.Path, clips: Sequence[Clip], columns: int = 4) -> None:
  """Draws clips with the classes that score above one half, and their true ones.

  Args:
    path: of the PNG.
    clips: at least one.
    columns: clips per row.
  """
  page, grid = drawing.panels(len(clips), 0.6, columns, lines=3)
  rows = grid[0].get_subplotspec().get_gridspec().nrows
  across = drawing.WIDTH / min(columns, len(clips))
  for number, (axes, clip) in enumerate(zip(grid, clips, strict=True)):
    shown = _show_spectrogram(axes, clip)
    first, last = number % columns == 0, number >= len(clips) - columns
    axes.set_ylabel('Hz' if first else '', fontsize=drawing.SMALL)
    axes.set_xlabel('seconds' if last or rows == 1 else '', fontsize=drawing.SMALL)
    found = [name for name, score in clip.scores if score > 0.5]
    title, color = ', '.join(found) or 'none', 'black'
    if clip.true is not None:
      color = 'green' if set(found) == set(clip.true) else 'red'
    if color == 'red':
      title += f'\ntrue: {", ".join(clip.true) or "none"}'
    if clip.name:
      title += f'\n{drawing.shortened(clip.name)}'
    title = drawing.wrapped(title, across - 0.3, drawing.SMALL)
    axes.set_title(title, fontsize=drawing.SMALL, color=color)
  limits = drawing.limits(clip.spectrogram for clip in clips)
  for axes in grid:
    axes.images[0].set_clim(*limits)
  drawing.add_bar(page, shown, grid, 'level (dB)', aspect=40)
  caption = 'Sounds, and above each the classes that score more than one half'
  if clips[0].true is not None:
    caption += ': green where they are exactly the true ones, red where not'
  drawing.save(page, path, f'{caption}.')
