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
  """A query and its answers, best first."""

  query: Item
  answers: Sequence[Answer]


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
    lines = '\n'.join(textwrap.wrap(item.text, 24))
    axes.text(0.5, 0.5, lines, ha='center', va='center', fontsize=7, transform=axes.transAxes)
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
  page = figure.Figure(figsize=(1.9 * columns, 1.9 * len(results)), layout='constrained')
  grid = page.subplots(len(results), columns, squeeze=False)
  for row, result in zip(grid, results, strict=True):
    for axes in row[1 + len(result.answers) :]:
      axes.set_axis_off()
    _show(row[0], result.query)
    row[0].set_title('query', fontsize=8, loc='left')
    for rank, (axes, answer) in enumerate(zip(row[1:], result.answers, strict=False), start=1):
      color = {True: 'tab:green', False: 'tab:red', None: None}[answer.right]
      _show(axes, answer.item, color)
      axes.set_title(f'{rank}: {answer.score:.3f}', fontsize=8, loc='left')
  drawing.save(page, path)


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
  heights = [max(2.4, 0.17 * words), *[1.5] * bands]
  page = figure.Figure(figsize=(13, sum(heights) + 0.3), layout='constrained')
  grid = page.add_gridspec(1 + bands, columns, height_ratios=heights)

  axes = page.add_subplot(grid[0, :2])
  _show(axes, item)
  for number, (top, left, bottom, right) in enumerate(boxes or ()):
    axes.add_patch(
      patches.Rectangle(
        (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor='cyan'
      )
    )
    axes.text(left, top, str(number), fontsize=7, color='black', backgroundcolor='cyan', va='top')

  for columns_of, values, title in (
    (slice(2, 5), attention.words_from_regions, 'words take from regions'),
    (slice(5, 8), attention.regions_from_words.T, 'regions take from words'),
  ):
    axes = page.add_subplot(grid[0, columns_of])
    axes.imshow(values, cmap='inferno', aspect='auto', vmin=0)
    axes.set_title(f'{title} (at most {values.max():.2f})', fontsize=8, loc='left')
    axes.set_xticks(range(regions), range(regions), fontsize=6)
    axes.set_yticks(range(words), pieces, fontsize=6)
    axes.set_xlabel('region', fontsize=7)

  for number in range(words if bands else 0):
    axes = page.add_subplot(grid[1 + number // columns, number % columns])
    image = np.asarray(item.picture.image)
    weights = _over_image(attention.words_from_regions[number], boxes, image.shape[:2])
    drawing.show_attention(axes, image, attention_maps.Attention(weights))
    axes.set_title(pieces[number], fontsize=7, loc='left')
  drawing.save(page, path)


def _over_image(
  weights: np.ndarray, boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int]
) -> np.ndarray:
  """Sums each region's weight over the pixels of its box."""
  result = np.zeros(size)
  for weight, box in zip(weights, boxes, strict=True):
    top, left, bottom, right = (round(edge) for edge in box)
    result[top:bottom, left:right] += weight
  return result
