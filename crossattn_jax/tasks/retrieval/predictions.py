"""What a retrieval network finds for the queries of a file and in the evaluation split."""

import collections
from collections.abc import Callable, Iterator, Sequence
import functools

from etils import epath
import jax
import numpy as np

from crossattn_jax.data.retrieval import sources
from crossattn_jax.tasks import base, predictor
from crossattn_jax.tasks.retrieval import mistakes as mistakes_lib
from crossattn_jax.tasks.retrieval import pictures, scoring, search

# Answers that pictures and records have.
_ANSWERS = 5
# Images among which the sheet of a run's end searches.
_SAMPLE_IMAGES = 256
# Queries of each kind in it.
_SAMPLES = 4


class Predictor(predictor.Predictor):
  """Searches the evaluation split for the queries of text files, and draws what it finds.

  A line that is the id of an image of the split finds captions, any other line is a sentence and
  finds images; without a text encoder it must be one of the split's captions. Of query n,
  `query_n.png` is a sheet with the five best answers, and `query_n_attention.png` shows what
  attends to what in the best pair.
  """

  extensions = ('.txt',)
  expected = (
    '.txt files with a query per line, a sentence or the id of an image of the evaluation split'
  )
  fields = (predictor.Field('query', 'text', 'Sentence, or the id of an image'),)
  shown_files = ('picture', 'attention')

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """See `scoring.score_batch`."""
    return scoring.score_batch(self.task.model, variables, batch)

  @classmethod
  def find_inputs(
    cls, given: epath.Path, apart_from: epath.Path | None = None
  ) -> tuple[list[predictor.Input], collections.Counter[str]]:
    """See `Predictor.find_inputs`; refuses also a file that is no text."""
    if given.is_file() and given.suffix.lower() not in cls.extensions:
      raise ValueError(f'--input={given}: expected {cls.expected}, not {given.name!r}')
    return super().find_inputs(given, apart_from)

  def predictions(
    self,
    inputs: Sequence[predictor.Input],
    output: epath.Path,
    drawn: str | None,
    unreadable: dict[str, Exception],
  ) -> Iterator[predictor.Record]:
    """One record per query.

    Raises:
      ValueError: there is no query, or a sentence that cannot be encoded.
    """
    queries = []
    for source in inputs:
      try:
        lines = epath.Path(*source.paths).read_text().splitlines()
        queries += filter(None, map(str.strip, lines))
      except ValueError as error:
        unreadable[str(source)] = error
    if not queries:
      raise ValueError(f'{", ".join(map(str, inputs))}: no line with a query')
    drawn = drawn or predictor.default_pictures(len(queries))
    gallery = self._gallery
    rows = {key: row for row, key in enumerate(gallery.keys)}
    results = self._search(
      gallery,
      [search.Query(row=rows[x]) if x in rows else search.Query(sentence=x) for x in queries],
    )
    for number, result in enumerate(results, start=1):
      files = {}
      if drawn == 'each':
        files['picture'] = output / f'query_{number}.png'
        pictures.retrieval_sheet(files['picture'], [result.shown(gallery)])
        if self.task.model.cross_attention:
          files['attention'] = output / f'query_{number}_attention.png'
          self._draw_attention(gallery, result, files['attention'])
      yield result.record(gallery) | {kind: str(path) for kind, path in files.items()}
    if drawn == 'sheet':
      shown = predictor.evenly_spread(results, predictor.MOST_PICTURES)
      pictures.retrieval_sheet(output / predictor.SHEET, [x.shown(gallery) for x in shown])

  def write_samples(self, path: epath.Path) -> None:
    """Writes a sheet of captions and images of the evaluation split and what they find in it."""
    gallery = self.gallery(_SAMPLE_IMAGES)
    count, captions = gallery.texts['mask'].shape[:2]
    rows = np.unique(np.linspace(0, count - 1, 2 * _SAMPLES).astype(int)).tolist()
    queries = [
      search.Query(gallery.captions(row)[number % captions], row)
      for number, row in enumerate(rows[::2])
    ]
    queries += [search.Query(row=row) for row in rows[1::2]]
    results = self._search(gallery, queries)
    pictures.retrieval_sheet(path, [result.shown(gallery) for result in results])

  def gallery(self, limit: int | None = None) -> search.Gallery:
    """Encodes the evaluation split, or the first batches of it that have `limit` images."""
    evaluate, encoded, count = jax.jit(self.task.evaluate), [], 0
    for batch in self.task.eval_data(self.task.scorer.rows, 0, 1):
      kept = batch['mask']
      examples = jax.device_get(evaluate(self.variables, batch)).examples
      encoded.append(jax.tree.map(lambda x, kept=kept: x[kept], examples))
      count += np.count_nonzero(kept)
      if limit is not None and count >= limit:
        break
    examples = jax.tree.map(lambda *parts: np.concatenate(parts), *encoded)
    return search.Gallery(self._source, examples.pop('index'), **examples)

  @property
  def _source(self) -> sources.Source:
    config = self.task.config.dataset
    return self.task.Examples.open_source(config, config.eval_split)

  def write_worst(self, path: epath.Path, mistakes: Sequence[mistakes_lib.Mistake]) -> None:
    """Draws images and captions that find their own last, with what they find."""
    by_image = [mistake for mistake in mistakes if mistake.caption is None][:_SAMPLES]
    by_caption = [mistake for mistake in mistakes if mistake.caption is not None][:_SAMPLES]
    shown = [mistake.shown(self._source) for mistake in (*by_caption, *by_image)]
    pictures.retrieval_sheet(path, shown)

  def mistake_name(self, mistake: mistakes_lib.Mistake) -> str:
    """The caption, or the id of the image."""
    return mistake.name(self._source)

  @functools.cached_property
  def _gallery(self) -> search.Gallery:
    """The whole split, encoded once for all queries."""
    return self.gallery()

  def _search(
    self, gallery: search.Gallery, queries: Sequence[search.Query]
  ) -> list[search.Result]:
    """Finds the best answers to each query."""
    captions = gallery.texts['mask'].shape[1]
    sentences = [query.sentence for query in queries if query.sentence is not None]
    rows = [query.row for query in queries if query.sentence is None]
    score, scores = functools.partial(self.task.scorer.all_pairs, self.variables), {}
    if sentences:
      texts = self._encode_sentences(gallery, sentences)
      scores[True] = iter(score(gallery.images, texts).T)
    if rows:
      images = {name: x[rows] for name, x in gallery.images.items()}
      scores[False] = iter(score(images, scoring.flat(gallery.texts)))
    return [
      search.best_answers(query, next(scores[query.sentence is not None]), captions, _ANSWERS)
      for query in queries
    ]

  def _encode_sentences(
    self, gallery: search.Gallery, sentences: Sequence[str]
  ) -> dict[str, np.ndarray]:
    if self.task.takes_features:
      rows, captions = zip(*map(gallery.place_of, sentences), strict=True)
      return {name: x[list(rows), list(captions)] for name, x in gallery.texts.items()}
    words, mask = (np.stack(x) for x in zip(*map(self.task.tokenizer, sentences), strict=True))
    return jax.device_get(self._encode_texts(self.variables, words, mask))

  def _draw_attention(
    self, gallery: search.Gallery, result: search.Result, path: epath.Path
  ) -> None:
    """Draws what attends to what in the best pair."""
    best = result.answers[0]
    sentence = result.query.sentence
    if sentence is None:
      sentence = gallery.captions(best.row)[best.caption]
    images = {name: x[best.row][None] for name, x in gallery.images.items()}
    texts = self._encode_sentences(gallery, [sentence])
    weights = jax.device_get(self._attend(self.variables, images, texts))
    weights = weights[0].mean(axis=0)
    regions, slots = images['mask'][0], images['mask'].shape[1]
    if self.task.takes_features:
      # What they were computed of is not known here.
      word_mask = texts['mask'][0]
      pieces = [str(number) for number in range(1, 1 + np.count_nonzero(word_mask))]
    else:
      words, word_mask = self.task.tokenizer(sentence)
      pieces = self.task.tokenizer.pieces(words, word_mask)
    pictures.attention_picture(
      path,
      gallery.image_item(best.row),
      pieces,
      pictures.PairAttention(
        regions_from_words=weights[:slots, slots:][regions][:, word_mask],
        words_from_regions=weights[slots:, :slots][word_mask][:, regions],
      ),
    )

  @functools.cached_property
  def _encode_texts(self) -> Callable[..., dict[str, jax.Array]]:
    return jax.jit(functools.partial(self.task.model.apply, method='encode_texts'))

  @functools.cached_property
  def _attend(self) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(self.task.model.apply, method='cross_attention_maps'))
