"""Pictures of retrieval: sheets of queries and answers, and what attends to what in a pair."""

from collections.abc import Sequence
import dataclasses
import textwrap

from etils import epath, epy
import numpy as np

from crossattn_jax.data.retrieval import examples
from crossattn_jax.tasks import attention_maps, drawing

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from matplotlib import figure, patches


@dataclasses.dataclass(frozen=True)
class Item:
  """An image or a sentence, as sheets show it.

  Attributes:
    text: the sentence, or the name of the image.
    picture: of the image; None for a sentence, and where the image is not at hand.
  """

  text: str
  picture: examples.Picture | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
  """Something that was found.

  Attributes:
    item: what.
    score: by the model.
    right: whether it belongs to the query; None where nobody knows.
  """

  item: Item
  score: float
  right: bool | None


@dataclasses.dataclass(frozen=True)
class Result:
  """A query and its answers, best first, and what is to be said of them."""

  query: Item
  answers: Sequence[Answer]
  text: str = ''


@dataclasses.dataclass(frozen=True)
class PairAttention:
  """What regions and words of a pair take from each other, of what all tokens give.

  Attributes:
    regions_from_words: `[regions, words]`.
    words_from_regions: `[words, regions]`.
  """

  regions_from_words: np.ndarray
  words_from_regions: np.ndarray


def _show(axes, item: Item, color: str | None = None) -> None:
  """Draws the image, or else writes the text; with a frame of a colour."""
  if item.picture is None:
    axes.set_xticks([])
    axes.set_yticks([])
    lines = '\n'.join(textwrap.wrap(item.text, 19, max_lines=9, placeholder=' …'))
    axes.set_box_aspect(1)
    axes.annotate(
      lines,
      (0.5, 0.5),
      xycoords='axes fraction',
      ha='center',
      va='center',
      fontsize=drawing.SMALL,
      in_layout=False,  # Else panels shrink to make room for it.
    )
  else:
    drawing.show_image(axes, item.picture.image)
    # Ticks stay hidden, the frame is wanted.
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
  for spine in axes.spines.values():
    spine.set_edgecolor(color or 'lightgray')
    spine.set_linewidth(3 if color else 1)


def retrieval_sheet(path: epath.Path, results: Sequence[Result]) -> None:
  """Draws a row per query: itself, then its answers, framed green where right and red where not.

  Args:
    path: of the PNG.
    results: at least one, with equally many answers.
  """
  columns = 1 + max(len(result.answers) for result in results)
  side = drawing.WIDTH / columns
  size = (drawing.WIDTH, (side + 0.25) * len(results))
  page = figure.Figure(figsize=size, layout='constrained')
  grid = page.subplots(len(results), columns, squeeze=False)
  for row, result in zip(grid, results, strict=True):
    for axes in row[1 + len(result.answers) :]:
      axes.set_axis_off()
    _show(row[0], result.query)
    row[0].set_title(result.text or 'searched for', fontsize=drawing.SMALL, loc='left')
    for rank, (axes, answer) in enumerate(zip(row[1:], result.answers, strict=False), start=1):
      color = {True: 'tab:green', False: 'tab:red', None: None}[answer.right]
      _show(axes, answer.item, color)
      axes.set_title(f'{rank}. score {answer.score:.2f}', fontsize=drawing.SMALL, loc='left')
  caption = 'Each row: what was searched for, and the best answers from left to right.'
  if any(answer.right is not None for result in results for answer in result.answers):
    caption += ' Green frames: what belongs to it; red ones: what belongs to something else.'
  drawing.save(page, path, caption)


def attention_picture(
  path: epath.Path, item: Item, pieces: Sequence[str], attention: PairAttention
) -> None:
  """Draws an image with its numbered regions, what words take from them, and the other way.

  Where boxes are known, the image is drawn again for each word, bright where the word looks.

  Args:
    path: of the PNG.
    item: the image.
    pieces: of the sentence, [CLS] and [SEP] included.
    attention: of the pair.
  """
  regions, words = attention.regions_from_words.shape
  boxes = None if item.picture is None else item.picture.boxes
  columns = 8
  bands = 0 if boxes is None else -(-words // columns)
  heights = [max(2.4, 0.17 * words), *[1.3] * bands]
  size = (drawing.WIDTH, sum(heights) + 0.3)
  page = figure.Figure(figsize=size, layout='constrained')
  top, *below = page.subfigures(
    1 + bool(bands),
    1,
    squeeze=False,
    height_ratios=[heights[0], *([sum(heights[1:])] if bands else [])],
  ).flat
  panels = top.subplots(1, 3)

  _show(panels[0], item)
  panels[0].set_title('the image and its regions', fontsize=drawing.SMALL, loc='left')
  for number, (up, left, down, right) in enumerate(boxes or ()):
    panels[0].add_patch(
      patches.Rectangle(
        (left - 0.5, up - 0.5), right - left, down - up, fill=False, edgecolor='cyan'
      )
    )
    panels[0].annotate(
      str(number),
      (left - 0.5, up - 0.5),
      xytext=(2, -2),
      textcoords='offset points',
      fontsize=drawing.SMALL,
      va='top',
      bbox={'facecolor': 'cyan', 'edgecolor': 'none', 'pad': 1},
    )

  for axes, values, title in (
    (panels[1], attention.words_from_regions, 'words look at regions'),
    (panels[2], attention.regions_from_words.T, 'regions look at words'),
  ):
    shown = axes.imshow(values, cmap='inferno', aspect='auto', vmin=0)
    axes.set_title(title, fontsize=drawing.SMALL, loc='left')
    every = -(-regions // 12)
    axes.set_xticks(range(0, regions, every), range(0, regions, every), fontsize=drawing.SMALL - 1)
    axes.set_yticks(range(words), pieces, fontsize=drawing.SMALL - 1)
    axes.set_xlabel('region', fontsize=drawing.SMALL)
    drawing.add_bar(top, shown, [axes], 'share of its attention', aspect=30)

  if bands:
    (page_of_words,) = below
    grid = page_of_words.subplots(bands, columns, squeeze=False)
    image = np.asarray(item.picture.image)
    maps = [_over_image(look, boxes, image.shape[:2]) for look in attention.words_from_regions]
    between = drawing.limits(maps)
    for axes in grid.flat[words:]:
      axes.set_axis_off()
    for axes, piece, weights in zip(grid.flat, pieces, maps, strict=False):
      shown = drawing.show_attention(axes, image, attention_maps.Attention(weights), between)
      axes.set_title(piece, fontsize=drawing.SMALL, loc='left')
    drawing.add_bar(page_of_words, shown, grid.flat, 'share of its attention', aspect=30)
  caption = (
    'How the words of a sentence and the regions of an image look at each other: the brighter, the '
    'larger the share of its attention that a row, or a column, gives.'
  )
  if bands:
    caption += ' Below, for each word, where in the image it looks: the sum over the regions there.'
  drawing.save(page, path, caption)


def _over_image(
  weights: np.ndarray, boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int]
) -> np.ndarray:
  """Sums each region's weight over the pixels of its box."""
  result = np.zeros(size)
  for weight, box in zip(weights, boxes, strict=True):
    top, left, bottom, right = (round(edge) for edge in box)
    result[top:bottom, left:right] += weight
  return result
