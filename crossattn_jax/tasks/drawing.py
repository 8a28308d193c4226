"""Drawing with matplotlib, without a display, and writing of pictures.

Pages are `WIDTH` inches wide, so that text of `TEXT` points can be read on a page of a browser,
where they are about 800 pixels wide. What is shown, and how it is read, stands below as a caption.
"""

from collections.abc import Iterable, Mapping, Sequence
import io
import textwrap

from etils import epath, epy
import numpy as np
from PIL import Image

from crossattn_jax.tasks import attention_maps

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure, patches
  from matplotlib import image as image_lib

WIDTH = 10.0
TEXT = 10
SMALL = 9
# Pages of few panels are that wide, for their captions.
_NARROWEST = 6.0
_HEADING = 0.25  # Height of a line above a panel, in inches.
_BAR = 0.7  # Width of a colour bar and of what is written beside it.
_DPI = 120
_MARGIN = 0.08
# What colours of attention mean, and how their pages explain it.
TIMES_AVERAGE = '× average'
LOOKING = 'Bright is where it looks most; 2 is twice as much as at the average place.'
_CHOSEN = 'Bright is what it looks at.'
_FRAMES = ' What looks has a frame.'


def write_png(path: epath.Path, image: Image.Image) -> None:
  """Writes an image; the path may be in a bucket."""
  buffer = io.BytesIO()
  image.save(buffer, 'png')
  path.write_bytes(buffer.getvalue())


def save(page: 'figure.Figure', path: epath.Path, caption: str = '') -> None:
  """Writes a PNG; the path may be in a bucket, which matplotlib cannot open.

  Args:
    page: what is drawn. Its legend, if it has one, is that of `legend`.
    path: of the PNG.
    caption: a sentence or two that say what is shown and how it is read; below the page.
  """
  width, height = page.get_size_inches()
  below = sum(x.get_window_extent().height / page.dpi + _MARGIN for x in page.legends)
  if caption:
    lines = wrapped(caption, width, SMALL)
    text = page.text(
      _MARGIN / width, -(below + _MARGIN) / height, lines, fontsize=SMALL, va='top', color='0.25'
    )
    below += text.get_window_extent().height / page.dpi + 2 * _MARGIN
  buffer = io.BytesIO()
  box = page.bbox_inches.from_extents(0, -below, width, height)
  page.savefig(buffer, format='png', dpi=_DPI, bbox_inches=box, pad_inches=0)
  path.write_bytes(buffer.getvalue())


def panels(
  count: int, tall: float, most: int = 4, lines: int = 1, bars: bool = False
) -> tuple['figure.Figure', np.ndarray]:
  """A page of panels that fill rows evenly, at most `most` beside each other.

  Args:
    count: of the panels.
    tall: height of one, of its width.
    most: panels in a row.
    lines: of text above each.
    bars: whether they have colour bars.

  Returns:
    The page, and the axes `[count]`.
  """
  rows = -(-count // most)
  across = -(-count // rows)
  height = rows * ((WIDTH / across - _BAR * bars) * tall + lines * _HEADING)
  page = figure.Figure(figsize=(WIDTH, height), layout='constrained')
  axes = page.subplots(rows, across, squeeze=False).ravel()
  for rest in axes[count:]:
    rest.set_axis_off()
  return page, axes[:count]


def columns(
  count: int, panels: int, most: int = 8, tall: float = 1.0, lines: int = 1, bars: bool = False
) -> tuple['figure.Figure', np.ndarray]:
  """A page for examples that each have a column of panels, in bands of at most `most` examples.

  Args:
    count: of the examples.
    panels: of each.
    most: examples beside each other.
    tall: height of a panel, of its width.
    lines: of text above each.
    bars: whether there are colour bars beside the last ones.

  Returns:
    The page, and the axes `[count, panels]`, of which nothing is seen yet.
  """
  across = min(count, most)
  bands = -(-count // across)
  side = (WIDTH - _BAR * bars) / most
  page = figure.Figure(
    figsize=(
      max(side * across + _BAR * bars, _NARROWEST),
      (side * tall + lines * _HEADING) * panels * bands,
    ),
    layout='constrained',
  )
  grid = page.subplots(bands * panels, across, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  by_example = grid.reshape(bands, panels, across).swapaxes(1, 2).reshape(-1, panels)
  return page, by_example[:count]


def name_panels(axes: np.ndarray, names: Sequence[str], most: int = 8) -> None:
  """Writes what panels show above the first example of each band of `columns`, after its titles."""
  for column in axes[::most]:
    for panel, name in zip(column, names, strict=True):
      title = panel.get_title()
      lines = title.count('\n') + 1 if title else 0
      size = panel.title.get_fontsize() if title else TEXT
      panel.set_title(f' \n{title}' if title else ' ', fontsize=size)
      # Wider than the panel: a title of that width would push the others aside.
      panel.annotate(
        name,
        (0, 1),
        xytext=(0, 5 + 1.2 * TEXT * lines),
        xycoords='axes fraction',
        textcoords='offset points',
        fontsize=TEXT,
        annotation_clip=False,
        in_layout=False,
      )


def wrapped(text: str, inches: float, size: float = TEXT) -> str:
  """The text in lines that fit into a width; those that it has stay apart."""
  most = max(8, int(inches * 72 / (0.56 * size)))
  return '\n'.join(textwrap.fill(line, most) for line in text.splitlines())


def shortened(name: str, most: int = 16) -> str:
  """The end of a path, for a title."""
  return name if len(name) <= most else '…' + name[1 - most :]


def legend(page: 'figure.Figure', colors: Mapping[str, Sequence[float]]) -> None:
  """Names colours, RGB in [0, 1], below a page."""
  longest = max(map(len, colors), default=0)
  page.legend(
    handles=[
      patches.Patch(facecolor=color, edgecolor='black', label=name)
      for name, color in colors.items()
    ],
    loc='upper center',
    bbox_to_anchor=(0.5, 0),
    ncols=max(1, int(page.get_size_inches()[0] / (0.08 * longest + 0.55))),
    fontsize=SMALL,
  )


def show_image(axes, image: np.ndarray | Image.Image) -> None:
  """Draws an image, bytes or floats in [0, 1], without axes."""
  pixels = np.asarray(image)
  if pixels.ndim == 3 and pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  # Else matplotlib stretches the levels that occur to black and white.
  axes.imshow(pixels, cmap='gray', vmin=0, vmax=1 if pixels.dtype.kind == 'f' else 255)
  axes.set_axis_off()


def show_scores(axes, scores: Sequence[tuple[str, float]]) -> None:
  """Draws a bar for each name and its score in [0, 1], best first."""
  names, values = zip(*scores, strict=True)
  bars = axes.barh(range(len(names)), values, height=0.7)
  axes.bar_label(bars, [f'{value:.1%}' for value in values], padding=2, fontsize=SMALL)
  axes.set_yticks(range(len(names)), [wrapped(name, 1.2) for name in names], fontsize=SMALL)
  axes.set_xticks([0, 0.5, 1], ['0', '50%', '100%'], fontsize=SMALL)
  axes.set_ylim(len(names) - 0.4, -0.6)
  axes.set_xlim(0, 1.35)
  axes.spines[['top', 'right']].set_visible(False)
  axes.set_title('the best classes', fontsize=TEXT)


def grey(image: np.ndarray | Image.Image) -> np.ndarray:
  """The luma of an image, bytes or floats, `[height, width]`; colours are free for other things."""
  pixels = np.asarray(image)
  if pixels.ndim == 2 or pixels.shape[-1] == 1:
    return pixels.reshape(pixels.shape[:2])
  return (pixels[..., :3] @ np.array([0.299, 0.587, 0.114])).astype(pixels.dtype)


def limits(maps: Iterable[np.ndarray]) -> tuple[float, float]:
  """The least and the largest value that colours tell apart, but for a few outliers."""
  low, high = np.percentile(np.concatenate([np.ravel(x) for x in maps]), (1, 97))
  return float(low), float(high)


def show_attention(
  axes,
  image: np.ndarray | Image.Image,
  attention: attention_maps.Attention,
  between: tuple[float, float] | None = None,
) -> 'image_lib.AxesImage':
  """Lays the map over the whole image, which is grey; what looks has a frame.

  Args:
    axes: of a panel.
    image: that is looked at.
    attention: map and frame.
    between: `limits` of the colours; those of this map by default.

  Returns:
    What `add_bar` takes.
  """
  show_image(axes, grey(image))
  height, width = np.asarray(image).shape[:2]
  low, high = between or (attention.weights.min(), attention.weights.max())
  shown = axes.imshow(
    attention.weights,
    cmap='inferno',
    vmin=low,
    vmax=high,
    alpha=0.6,
    interpolation='bilinear' if attention.query is None else 'nearest',
    extent=(-0.5, width - 0.5, height - 0.5, -0.5),
  )
  if attention.query is None:
    return shown
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
  return shown


def whole_row(panel) -> list:
  """The places of a panel's row, those included in which nothing is drawn.

  A bar beside all of them is at the edge of the page, where it pushes no column aside.
  """
  rows = panel.get_subplotspec().rowspan
  specs = ((axes, axes.get_subplotspec()) for axes in panel.figure.axes)
  return [axes for axes, spec in specs if spec is not None and spec.rowspan == rows]


def add_bar(
  page: 'figure.Figure',
  shown: 'image_lib.AxesImage',
  axes: Sequence,
  label: str = TIMES_AVERAGE,
  **options,
) -> None:
  """Draws a colour bar beside panels.

  Args:
    page: of the panels.
    shown: what `show_attention` returns, or another thing with colours.
    axes: the panels beside each other that share the colours.
    label: what they mean.
    **options: of `figure.colorbar`.
  """
  bar = page.colorbar(shown, ax=list(axes), **{'pad': 0.01, 'aspect': 20, **options})
  bar.set_label(label, fontsize=SMALL)
  bar.ax.tick_params(labelsize=SMALL - 1)
  bar.formatter.set_useOffset(False)
  bar.ax.set_facecolor('0.5')  # Of colours that shine through: as over a grey image.


def looking(maps: Iterable[attention_maps.Attention]) -> str:
  """What a caption says of maps of attention; '' where there are none."""
  maps = list(maps)
  if not maps:
    return ''
  graded = any(attention.is_graded for attention in maps)
  framed = any(attention.query is not None for attention in maps)
  return (LOOKING if graded else _CHOSEN) + _FRAMES * framed
