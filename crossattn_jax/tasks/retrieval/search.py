"""Searching a split: queries, what was found for them, and how records and pictures show it."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from crossattn_jax.data.retrieval import sources
from crossattn_jax.tasks.retrieval import pictures, scoring


@dataclasses.dataclass(frozen=True)
class Gallery:
  """Images of a split and their captions, encoded.

  Attributes:
    source: of the split.
    numbers: which of its images, int `[images]`.
    images: as the model encodes them, each `[images, ...]`.
    texts: likewise, `[images, captions, ...]`.
  """

  source: sources.Source
  numbers: np.ndarray
  images: scoring.Encoded
  texts: scoring.Encoded

  @functools.cached_property
  def keys(self) -> list[str]:
    """The id of each image."""
    return [self.source.key(int(number)) for number in self.numbers]

  def captions(self, row: int) -> tuple[str, ...]:
    """The captions of an image."""
    return self.source[int(self.numbers[row])].captions

  def place_of(self, sentence: str) -> tuple[int, int]:
    """Row and number of a caption.

    Raises:
      ValueError: no image has it.
    """
    if sentence not in self._places:
      raise ValueError(
        f'{sentence!r} is no caption of the split: the model takes word features, which other '
        'sentences have only with a text encoder; ask by a caption or by the id of an image'
      )
    return self._places[sentence]

  @functools.cached_property
  def _places(self) -> dict[str, tuple[int, int]]:
    return {
      caption: (row, number)
      for row in range(len(self.numbers))
      for number, caption in enumerate(self.captions(row))
    }

  def image_item(self, row: int) -> pictures.Item:
    """An image, for a picture."""
    return pictures.Item(self.keys[row], self.source.picture(int(self.numbers[row])))


@dataclasses.dataclass(frozen=True)
class Query:
  """What is searched for.

  Attributes:
    sentence: that finds images; None where an image finds captions.
    row: of that image in the gallery, or of the image that the sentence is known to belong to.
  """

  sentence: str | None = None
  row: int | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
  """Something that was found.

  Attributes:
    row: of the image in the gallery.
    caption: which of its captions; None where the image was searched for.
    score: by the model.
  """

  row: int
  caption: int | None
  score: float


@dataclasses.dataclass(frozen=True)
class Result:
  """A query and its answers, best first."""

  query: Query
  answers: Sequence[Answer]

  def record(self, gallery: Gallery) -> dict[str, Any]:
    """As JSON can hold it."""
    by_image = self.query.sentence is None
    answers = []
    for answer in self.answers:
      entry = {'image': gallery.keys[answer.row]}
      if by_image:
        entry['caption'] = gallery.captions(answer.row)[answer.caption]
      answers.append(entry | {'score': answer.score})
    return {
      'query': gallery.keys[self.query.row] if by_image else self.query.sentence,
      'kind': 'image' if by_image else 'sentence',
      'answers': answers,
    }

  def shown(self, gallery: Gallery) -> pictures.Result:
    """As a sheet shows it."""
    query, by_image = self.query, self.query.sentence is None
    answers = []
    for answer in self.answers:
      if by_image:
        item = pictures.Item(gallery.captions(answer.row)[answer.caption])
      else:
        item = gallery.image_item(answer.row)
      right = None if query.row is None else answer.row == query.row
      answers.append(pictures.Answer(item, answer.score, right))
    asked = gallery.image_item(query.row) if by_image else pictures.Item(query.sentence)
    return pictures.Result(asked, answers)


def best_answers(query: Query, scores: np.ndarray, captions: int, count: int) -> Result:
  """Sorts what was scored for a query.

  Args:
    query: a sentence or an image.
    scores: of all images, or of all captions, of the gallery.
    captions: of each image.
    count: of the answers.
  """
  answers = []
  for index in np.argsort(-scores, kind='stable')[:count]:
    place = (int(index), None) if query.sentence is not None else divmod(int(index), captions)
    answers.append(Answer(*place, float(scores[index])))
  return Result(query, answers)
