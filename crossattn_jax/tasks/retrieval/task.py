"""Retrieval between images and sentences: each finds the other by a score of all pairs."""

from collections.abc import Callable, Mapping, Sequence
import functools
import json
import pathlib
from typing import Any

from etils import epath
from flax import linen as nn
import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from crossattn_jax.data.retrieval import batches as data
from crossattn_jax.data.retrieval import word_pieces
from crossattn_jax.metrics import retrieval as metrics
from crossattn_jax.tasks import base
from crossattn_jax.tasks.retrieval import losses, search
from crossattn_jax.tasks.retrieval import pictures as retrieval_pictures
from crossattn_jax.tasks.retrieval import scoring as retrieval_scoring

# Modules whose kernels SAEM keeps short, and by how much.
_IMAGE_BRANCH = ('region_projection', 'image_')
_NORM_WEIGHT = 0.01
# Answers that pictures and records have.
_ANSWERS = 5
# Images among which the sheet of a run's end searches.
_SAMPLE_IMAGES = 256
# Queries of each kind in it.
_SAMPLES = 4
# Captions per image in the blocks of all pairs: as many as images have.
_BLOCK_TEXTS = 5


def default_config() -> ml_collections.ConfigDict:
  """The `task` and `dataset` sections of a retrieval experiment."""
  config = ml_collections.ConfigDict()
  config.task = ml_collections.ConfigDict(
    {
      'name': 'retrieval',
      # By how much a pair should score higher than its negatives: all pairs of an image and a
      # caption of the global batch that do not belong together.
      'margin': 0.2,
      # Whether only the hardest negative of each image and of each caption counts, or all do.
      # Before the given epoch, counted from 0, all do: a network that knows nothing yet may learn
      # nothing from the hardest.
      'hardest': True,
      'hardest_from_epoch': 0,
      # Whether other captions of the same image are no negatives.
      'exclude_same_image': False,
      # Whether SAEM's further losses are added: the angular loss, whose weight decays by the epoch,
      # and 0.01 times the lengths of the image branch's kernels.
      'saem_losses': False,
      # Captions that are paired with the images of a batch at a time, by which memory is bounded,
      # in training and in evaluation. Nothing but the random bits of dropout depends on it.
      'chunk': 8,
    }
  )
  config.task.evaluation = ml_collections.ConfigDict(
    {
      # Whether images and captions of the whole split are searched.
      'all_pairs': True,
      # Also, or else, the split is cut into so many folds that are searched separately, and metrics
      # averaged as 'folds/...': 5 for the "1K" results on the 5,000 test images of MS-COCO.
      'folds': ml_collections.config_dict.placeholder(int),
      # The cross-attention module scores only so many captions of each image and images of each
      # caption, the best by the self-attention module; the others stay behind them. That is an
      # approximation: metrics are called 'rerank_topK/...'. None scores all pairs.
      'rerank_topk': ml_collections.config_dict.placeholder(int),
    }
  )
  config.dataset = data.default_config()
  return config


def create_task(config: ml_collections.ConfigDict) -> 'Retrieval':
  """Builds the task; see `tasks.create_task`."""
  return Retrieval(config)


class Retrieval(base.Task):
  """Finds the captions of an image and the image of a caption."""

  Examples = data.Examples

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__(config)
    _check(config, self.model)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """As many images as captions; pair i belongs together."""
    config = self.config.dataset
    words = ((config.max_words,), jnp.int32)
    if self._takes_features:
      words = ((config.max_words, config.word_dim), jnp.float32)
    shapes = {
      'regions': ((config.num_regions, config.region_dim), jnp.float32),
      'region_mask': ((config.num_regions,), jnp.bool_),
      'words': words,
      'word_mask': ((config.max_words,), jnp.bool_),
      'image': ((), jnp.int32),
      'epoch': ((), jnp.int32),
    }
    return {
      name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
      for name, (shape, dtype) in shapes.items()
    }

  def init(self, rng: jax.Array) -> base.Variables:
    """Initial variables of the model."""
    batch = jax.tree.map(lambda spec: jnp.ones(spec.shape, spec.dtype), self.batch_spec(1))
    return self.model.init({'params': rng}, batch)

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """The triplet loss over all pairs of the global batch, summed over its images and captions."""
    config = self.config.task
    scores, features = self.model.apply(
      variables, batch, train=train, chunk=config.chunk, rngs={'dropout': rng}
    )
    triplet_loss = functools.partial(
      losses.triplet_loss,
      scores,
      margin=config.margin,
      image_ids=batch['image'] if config.exclude_same_image else None,
    )
    loss = triplet_loss(hardest=config.hardest).sum()
    epoch = batch['epoch'].max()
    if config.hardest and config.hardest_from_epoch:
      early = triplet_loss(hardest=False).sum()
      loss = jnp.where(epoch < config.hardest_from_epoch, early, loss)
    reported = {'triplet_loss': loss, 'accuracy': _batch_accuracy(scores)}
    if config.saem_losses:
      angular = losses.angular_loss(features['image_embedding'], features['text_embedding']).sum()
      norms = losses.norm_penalty(
        {name: x for name, x in variables['params'].items() if name.startswith(_IMAGE_BRANCH)}
      )
      loss += losses.angular_weight(epoch) * angular + _NORM_WEIGHT * norms
      reported |= {'angular_loss': angular, 'norm_penalty': norms}
    return loss, (reported, {})

  def check_data(self) -> None:
    """Refuses word pieces that the text encoder does not know."""
    if self._takes_features:
      return
    size, known = len(self._tokenizer.vocabulary), self.model.vocab_size
    if size > known:
      raise ValueError(
        f'dataset.vocabulary has {size} word pieces, {self.config.model.name!r} knows {known}: set '
        'config.model.vocab_size, or the vocabulary of its text encoder'
      )

  def train_data(self, batch_size: int, block: int, num_blocks: int) -> grain.IterDataset:
    """Endless batches of pairs.

    Raises:
      ValueError: a frozen text encoder has no weights.
    """
    frozen = self.model.text_layers and self.model.freeze_text_encoder
    if frozen and self.config.weights is None:
      raise ValueError(
        f'the text encoder of {self.config.model.name!r} is frozen and would stay as it is '
        'initialised: set config.weights to a file that `python -m crossattn_jax.parity convert '
        f'{self.config.model.name} BERT_CHECKPOINT FILE --fresh=0` wrote, or '
        'config.model.freeze_text_encoder=False'
      )
    return super().train_data(batch_size, block, num_blocks)

  def evaluate(self, variables: base.Variables, batch: base.Batch) -> base.Evaluation:
    """Encodes images `[batch, ...]` and their captions `[batch, captions, ...]`, each alone."""
    rows, captions, _ = batch['word_mask'].shape
    apply = functools.partial(self.model.apply, variables)
    images = apply(batch['regions'], batch['region_mask'], method='encode_images')
    texts = _flat({name: batch[name] for name in ('words', 'word_mask')})
    texts = apply(texts['words'], texts['word_mask'], method='encode_texts')
    texts = jax.tree.map(lambda x: x.reshape(rows, captions, *x.shape[1:]), texts)
    return base.Evaluation(
      sums={'count': jnp.sum(batch['mask'], dtype=jnp.int32)},
      examples={'images': images, 'texts': texts},
    )

  def evaluate_examples(
    self, variables: base.Variables, examples: Any
  ) -> dict[str, list[np.ndarray | retrieval_scoring.Reranked]]:
    """Scores of all pairs, and of the pairs of each fold.

    Args:
      variables: of the model.
      examples: encoded images and captions, as `evaluate` has them.

    Returns:
      By the beginning of the metrics' names, '' for all pairs and 'folds/', one array `[images,
      captions]` per part; with `rerank_topk`, 'rerank_topK/...' and a `Reranked` per part.

    Raises:
      ValueError: the folds do not divide the images.
    """
    config = self.config.task.evaluation
    images, texts = examples['images'], examples['texts']
    count, captions = texts['mask'].shape[:2]
    score, prefix = self._score, ''
    if config.rerank_topk is not None:
      score, prefix = self._rerank, f'rerank_top{config.rerank_topk}/'
    scores: dict[str, list[np.ndarray | retrieval_scoring.Reranked]] = {}
    if config.all_pairs:
      scores[prefix] = [score(variables, images, _flat(texts))]
    if config.folds is not None:
      if count % config.folds:
        raise ValueError(
          f'config.task.evaluation.folds={config.folds} do not divide the {count} images of split '
          f'{self.config.dataset.eval_split!r}; set it to None, or dataset.eval_images'
        )
      folds = scores[f'{prefix}folds/'] = []
      size = count // config.folds
      for start in range(0, count, size):
        rows = slice(start, start + size)
        if config.all_pairs and config.rerank_topk is None:
          part = scores[''][0][rows, start * captions : (start + size) * captions]
        else:
          # The best of a fold are others than the best of all.
          fold = jax.tree.map(lambda x, rows=rows: x[rows], (images, texts))
          part = score(variables, fold[0], _flat(fold[1]))
        folds.append(part)
    return scores

  def metrics(self, evaluation: base.Evaluation) -> dict[str, float]:
    """What `metrics.retrieval_metrics` has, means over folds as 'folds/NAME', number of images."""
    results = {}
    for prefix, parts in evaluation.examples.items():
      tables = [_table(scores) for scores in parts]
      for name in tables[0]:
        results[prefix + name] = float(np.mean([table[name] for table in tables]))
    return results | {'examples': int(evaluation.sums['count'])}

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Scores every sentence for every image.

    Args:
      variables: of the model.
      batch: 'regions', 'region_mask', 'words' and 'word_mask' as in training, of any number of
        images and any number of sentences.

    Returns:
      'score' `[images, texts]`; 'image_embedding' `[images, width]` and 'text_embedding' `[texts,
      width]`, of the self-attention module.
    """
    apply = functools.partial(self.model.apply, variables)
    images = apply(batch['regions'], batch['region_mask'], method='encode_images')
    texts = apply(batch['words'], batch['word_mask'], method='encode_texts')
    return {
      'score': apply(images, texts, method='score'),
      'image_embedding': images['embedding'],
      'text_embedding': texts['embedding'],
    }

  def list_inputs(self, inputs: epath.Path) -> list[epath.Path]:
    """Text files with queries: `inputs`, or those in the folder.

    Raises:
      FileNotFoundError: there are none.
      ValueError: a file is no text.
    """
    files = super().list_inputs(inputs)
    for path in files:
      if path.suffix.lower() != '.txt':
        raise ValueError(
          f'--input={inputs}: expected .txt files with a query per line, a sentence or the id of '
          f'an image of the evaluation split, not {path.name!r}'
        )
    return files

  def write_predictions(
    self, variables: base.Variables, inputs: Sequence[epath.Path], output: epath.Path
  ) -> list[dict[str, Any]]:
    """Searches the evaluation split for the queries of text files.

    A line that is the id of an image of the split finds captions, any other line is a sentence and
    finds images; without a text encoder it must be one of the split's captions. Written are
    `predictions.json`, and for query n `query_n.png`, a sheet with the five best answers, and
    `query_n_attention.png`, what attends to what in the best pair.

    Args:
      variables: of the model.
      inputs: text files.
      output: an existing folder.

    Returns:
      One record per query.

    Raises:
      ValueError: there is no query, or a sentence that cannot be encoded.
    """
    lines = [line.strip() for path in inputs for line in path.read_text().splitlines()]
    queries = [line for line in lines if line]
    if not queries:
      raise ValueError(f'{", ".join(map(str, inputs))}: no line with a query')
    gallery = self._gallery(variables)
    rows = {key: row for row, key in enumerate(gallery.keys)}
    results = self._search(
      variables,
      gallery,
      [search.Query(row=rows[x]) if x in rows else search.Query(sentence=x) for x in queries],
    )
    records = []
    for number, result in enumerate(results, start=1):
      files = {'picture': output / f'query_{number}.png'}
      retrieval_pictures.retrieval_sheet(files['picture'], [result.shown(gallery)])
      if self.model.cross_attention:
        files['attention'] = output / f'query_{number}_attention.png'
        self._draw_attention(variables, gallery, result, files['attention'])
      record = result.record(gallery) | {kind: str(path) for kind, path in files.items()}
      records.append(record)
    (output / 'predictions.json').write_text(json.dumps(records, indent=2) + '\n')
    return records

  def write_samples(self, variables: base.Variables, path: epath.Path) -> None:
    """Writes a sheet of captions and images of the evaluation split and what they find in it."""
    gallery = self._gallery(variables, _SAMPLE_IMAGES)
    count, captions = gallery.texts['mask'].shape[:2]
    rows = np.unique(np.linspace(0, count - 1, 2 * _SAMPLES).astype(int)).tolist()
    queries = [
      search.Query(gallery.captions(row)[number % captions], row)
      for number, row in enumerate(rows[::2])
    ]
    queries += [search.Query(row=row) for row in rows[1::2]]
    results = self._search(variables, gallery, queries)
    retrieval_pictures.retrieval_sheet(path, [result.shown(gallery) for result in results])

  def serving(self) -> base.Serving:
    """Images' regions and sentences' words in, scores of all their pairs and embeddings out."""
    specs = self.batch_spec(1)
    images, texts = ('regions', 'region_mask'), ('words', 'word_mask')
    return base.Serving(
      run=self.predict,
      inputs={
        name: jax.ShapeDtypeStruct(specs[name].shape[1:], specs[name].dtype)
        for name in (*images, *texts)
      },
      description={'vocabulary': None if self._takes_features else self._tokenizer.vocabulary},
      script=pathlib.Path(__file__).with_name('serving_script.py'),
      batches=dict.fromkeys(images, 'images') | dict.fromkeys(texts, 'texts'),
    )

  def _gallery(self, variables: base.Variables, limit: int | None = None) -> search.Gallery:
    """Encodes the evaluation split, or the first batches of it that have `limit` images."""
    numbers, encoded = [], []
    for batch in self.eval_data(self._eval_batch_size, 0, 1):
      kept = batch['mask']
      examples = jax.device_get(self._evaluate(variables, batch)).examples
      encoded.append(jax.tree.map(lambda x, kept=kept: x[kept], examples))
      numbers.append(batch['image'][kept])
      if limit is not None and sum(map(len, numbers)) >= limit:
        break
    examples = jax.tree.map(lambda *parts: np.concatenate(parts), *encoded)
    config = self.config.dataset
    source = self.Examples.open_source(config, config.eval_split)
    return search.Gallery(source, np.concatenate(numbers), **examples)

  def _search(
    self, variables: base.Variables, gallery: search.Gallery, queries: Sequence[search.Query]
  ) -> list[search.Result]:
    """Finds the best answers to each query."""
    captions = gallery.texts['mask'].shape[1]
    sentences = [query.sentence for query in queries if query.sentence is not None]
    rows = [query.row for query in queries if query.sentence is None]
    scores = {}
    if sentences:
      texts = self._encode_sentences(variables, gallery, sentences)
      scores[True] = iter(self._score(variables, gallery.images, texts).T)
    if rows:
      images = {name: x[rows] for name, x in gallery.images.items()}
      scores[False] = iter(self._score(variables, images, _flat(gallery.texts)))
    return [
      search.best_answers(query, next(scores[query.sentence is not None]), captions, _ANSWERS)
      for query in queries
    ]

  def _encode_sentences(
    self, variables: base.Variables, gallery: search.Gallery, sentences: Sequence[str]
  ) -> dict[str, np.ndarray]:
    if self._takes_features:
      rows, captions = zip(*map(gallery.place_of, sentences), strict=True)
      return {name: x[list(rows), list(captions)] for name, x in gallery.texts.items()}
    words, mask = (np.stack(x) for x in zip(*map(self._tokenizer, sentences), strict=True))
    return jax.device_get(self._encode_texts(variables, words, mask))

  def _draw_attention(
    self,
    variables: base.Variables,
    gallery: search.Gallery,
    result: search.Result,
    path: epath.Path,
  ) -> None:
    """Draws what attends to what in the best pair."""
    best = result.answers[0]
    sentence = result.query.sentence
    if sentence is None:
      sentence = gallery.captions(best.row)[best.caption]
    images = {name: x[best.row][None] for name, x in gallery.images.items()}
    texts = self._encode_sentences(variables, gallery, [sentence])
    weights = jax.device_get(self._attend(variables, images, texts))
    weights = weights[0].mean(axis=0)
    regions, slots = images['mask'][0], images['mask'].shape[1]
    if self._takes_features:
      # What they were computed of is not known here.
      word_mask = texts['mask'][0]
      pieces = [str(number) for number in range(1, 1 + np.count_nonzero(word_mask))]
    else:
      words, word_mask = self._tokenizer(sentence)
      pieces = self._tokenizer.pieces(words, word_mask)
    retrieval_pictures.attention_picture(
      path,
      gallery.image_item(best.row),
      pieces,
      retrieval_pictures.PairAttention(
        regions_from_words=weights[:slots, slots:][regions][:, word_mask],
        words_from_regions=weights[slots:, :slots][word_mask][:, regions],
      ),
    )

  def _score(
    self,
    variables: base.Variables,
    images: retrieval_scoring.Encoded,
    texts: retrieval_scoring.Encoded,
  ) -> np.ndarray:
    rows = self._eval_batch_size
    return retrieval_scoring.score_all_pairs(
      self._score_block, variables, images, texts, (rows, _BLOCK_TEXTS * rows)
    )

  def _rerank(
    self,
    variables: base.Variables,
    images: retrieval_scoring.Encoded,
    texts: retrieval_scoring.Encoded,
  ) -> retrieval_scoring.Reranked:
    config = self.config.task
    return retrieval_scoring.rerank_best_pairs(
      self._score_pairs,
      variables,
      images,
      texts,
      alpha=self.model.alpha,
      top_k=config.evaluation.rerank_topk,
      block=self._eval_batch_size * config.chunk,
    )

  @property
  def _takes_features(self) -> bool:
    """Whether words come as features, and not as the numbers of word pieces."""
    return self.config.dataset.word_files is not None

  @property
  def _eval_batch_size(self) -> int:
    return self.config.evaluation.batch_size or self.config.batch_size

  # Compiled once, however often they are called.

  @functools.cached_property
  def _evaluate(self) -> Callable[..., base.Evaluation]:
    return jax.jit(self.evaluate)

  @functools.cached_property
  def _encode_texts(self) -> Callable[..., dict[str, jax.Array]]:
    return jax.jit(functools.partial(self.model.apply, method='encode_texts'))

  @functools.cached_property
  def _attend(self) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(self.model.apply, method='cross_attention_maps'))

  @functools.cached_property
  def _score_block(self) -> Callable[..., jax.Array]:
    return retrieval_scoring.create_block_scorer(self.model, self.config.task.chunk)

  @functools.cached_property
  def _score_pairs(self) -> Callable[..., jax.Array]:
    return retrieval_scoring.create_pair_scorer(self.model)

  @functools.cached_property
  def _tokenizer(self) -> word_pieces.WordPieces:
    return data.tokenizer(self.config.dataset)


def _flat(texts: Mapping[str, Any]) -> dict[str, Any]:
  """Captions `[images, captions, ...]` as sentences `[images * captions, ...]`."""
  return {name: x.reshape(-1, *x.shape[2:]) for name, x in texts.items()}


def _table(scores: np.ndarray | retrieval_scoring.Reranked) -> dict[str, float]:
  """The metrics of a part of the split."""
  of_texts = None
  if isinstance(scores, retrieval_scoring.Reranked):
    scores, of_texts = scores
  captions = scores.shape[1] // scores.shape[0]
  return metrics.retrieval_metrics(scores, captions, text_scores=of_texts)


def _batch_accuracy(scores: jax.Array) -> jax.Array:
  """How often images and captions of a batch find each other."""
  own = jnp.arange(scores.shape[0])
  return jnp.mean(jnp.stack([scores.argmax(axis=0) == own, scores.argmax(axis=1) == own]))


def _check(config: ml_collections.ConfigDict, model: nn.Module) -> None:
  """Refuses wrong values, naming the key."""
  if config.accumulation_steps > 1:
    raise ValueError(
      f'config.accumulation_steps={config.accumulation_steps}: negatives are those of the whole '
      'batch, which is therefore not split; lower config.task.chunk to save memory'
    )
  dataset = config.dataset
  if not model.text_layers and dataset.word_files is None:
    raise ValueError(
      f'{config.model.name!r} takes word features, but data sets have sentences: set '
      'config.dataset.word_files to the folder of those that `python -m '
      'crossattn_jax.tasks.retrieval.words` computes, or choose a model with a text encoder, such '
      "as 'mmca_bert_base' or 'mmca_small'"
    )
  if model.text_layers and dataset.word_files is not None:
    raise ValueError(
      f'config.dataset.word_files={dataset.word_files!r}, but {config.model.name!r} has a text '
      "encoder, which takes word pieces: set it to None, or choose a model without, such as 'mmca'"
    )
  if dataset.word_files is not None and dataset.word_dim != model.word_dim:
    raise ValueError(
      f'config.dataset.word_dim={dataset.word_dim}, but config.model.word_dim is {model.word_dim}'
    )
  if dataset.region_dim != model.region_dim:
    raise ValueError(
      f'config.dataset.region_dim={dataset.region_dim}, but config.model.region_dim is '
      f'{model.region_dim}'
    )
  if model.text_layers and dataset.max_words > model.max_positions:
    raise ValueError(
      f'config.dataset.max_words={dataset.max_words}, but the text encoder knows '
      f'config.model.max_positions={model.max_positions}'
    )
  if config.task.chunk < 1:
    raise ValueError(f'config.task.chunk={config.task.chunk} must be positive')
  evaluation = config.task.evaluation
  if evaluation.rerank_topk is not None:
    key = f'config.task.evaluation.rerank_topk={evaluation.rerank_topk}'
    if evaluation.rerank_topk < 1:
      raise ValueError(f'{key} must be positive, or None to score all pairs')
    if not model.cross_attention:
      raise ValueError(
        f'{key}: {config.model.name!r} has no cross-attention module, whose pairs would be fewer'
      )
  if not evaluation.all_pairs and evaluation.folds is None:
    raise ValueError(
      'config.task.evaluation.all_pairs=False leaves nothing to evaluate: set '
      'config.task.evaluation.folds'
    )
