"""The queries of a split that find their own last, and what they find instead."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from crossattn_jax.data.retrieval import sources
from crossattn_jax.metrics import retrieval as metrics
from crossattn_jax.tasks import review
from crossattn_jax.tasks.retrieval import pictures, scoring, search

# Answers that are kept of each query.
_ANSWERS = 5


@dataclasses.dataclass(frozen=True)
class Mistake(review.Mistake):
  """A query that does not find its own first; `index` is that of its image.

  Attributes:
    result: what it finds; its rows are places in `numbers`.
    caption: which of the image's captions asks; None where the image does.
    numbers: of the images that were searched, int `[images]`.
  """

  result: search.Result
  caption: int | None
  numbers: np.ndarray

  def name(self, source: sources.Source) -> str:
    """The caption, or the id of the image."""
    if self.caption is None:
      return source.key(self.index)
    return source[self.index].captions[self.caption]

  def shown(self, source: sources.Source) -> pictures.Result:
    """As a sheet shows it, with the place of its own."""
    sentence = None if self.caption is None else self.name(source)
    query = search.Query(sentence, self.result.query.row)
    result = search.Result(query, self.result.answers)
    shown = result.shown(search.Gallery(source, self.numbers, images={}, texts={}))
    return dataclasses.replace(shown, text=self.text)


def worst_queries(
  parts: Sequence[np.ndarray | scoring.Reranked], numbers: Sequence[np.ndarray]
) -> list[Mistake]:
  """The queries that find their own last, as many images as captions if there are.

  Args:
    parts: of the split that were searched alone, scores `[images, captions]` of each.
    numbers: of the images of each part, int `[images]`.
  """
  found: list[Mistake] = []
  for by_image in (True, False):
    of_parts = [
      mistake
      for scores, own in zip(parts, numbers, strict=True)
      for mistake in _worst_of_part(scores, own, by_image)
    ]
    of_parts.sort(key=lambda mistake: -mistake.error)
    found += of_parts[: review.MOST_MISTAKES // 2]
  return sorted(found, key=lambda mistake: -mistake.error)


def _worst_of_part(
  scores: np.ndarray | scoring.Reranked, numbers: np.ndarray, by_image: bool
) -> list[Mistake]:
  if isinstance(scores, scoring.Reranked):
    scores = scores.of_images if by_image else scores.of_texts
  captions = scores.shape[1] // scores.shape[0]
  if by_image:
    table, ranks = scores, metrics.image_to_text_ranks(scores, captions)
  else:
    table, ranks = scores.T, metrics.text_to_image_ranks(scores, captions)
  found = []
  for query in np.argsort(-ranks, kind='stable')[: review.MOST_MISTAKES // 2].tolist():
    if not ranks[query]:
      break
    row, caption = (query, None) if by_image else divmod(query, captions)
    # What the sentence is, is read where it is shown.
    asked = search.Query(None if by_image else '', row)
    text = f'own at place {ranks[query] + 1} of {table.shape[1]}'
    result = search.best_answers(asked, table[query], captions, _ANSWERS)
    found.append(Mistake(int(numbers[row]), float(ranks[query]), text, result, caption, numbers))
  return found
