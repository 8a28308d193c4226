"""Retrieval between images and sentences: each finds the other by a score of all pairs."""

import functools
from typing import Any

from flax import linen as nn
import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from crossattn_jax.data.retrieval import batches as data
from crossattn_jax.data.retrieval import word_pieces
from crossattn_jax.metrics import retrieval as metrics
from crossattn_jax.tasks import base, review
from crossattn_jax.tasks.retrieval import losses, mistakes, predictions, scoring, serving

# Modules whose kernels SAEM keeps short, and by how much.
_IMAGE_BRANCH = ('region_projection', 'image_')
_NORM_WEIGHT = 0.01


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
      'hardest': True,
      # Before this epoch, counted from 0, all do: a network that knows nothing yet may learn
      # nothing from the hardest.
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


class Retrieval(base.Task):
  """Finds the captions of an image and the image of a caption.

  Attributes:
    scorer: of all pairs of a split.
  """

  Examples = data.Examples
  Predictor = predictions.Predictor
  Serving = serving.Serving

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__(config)
    _check(config, self.model)
    batch_size = config.evaluation.batch_size or config.batch_size
    self.scorer = scoring.Scorer(self.model, config.task.chunk, batch_size)

  @property
  def takes_features(self) -> bool:
    """Whether words come as features, and not as the numbers of word pieces."""
    return self.config.dataset.word_files is not None

  @functools.cached_property
  def tokenizer(self) -> word_pieces.WordPieces:
    """Makes word pieces of sentences."""
    return data.tokenizer(self.config.dataset)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """As many images as captions; pair i belongs together."""
    config = self.config.dataset
    words = ((config.max_words,), jnp.int32)
    if self.takes_features:
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

  def model_inputs(self, batch: base.Batch) -> tuple[base.Batch]:
    """All of the batch."""
    return (batch,)

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
    """Refuses word pieces that the text encoder does not know, and folds of unequal size."""
    if self.config.task.evaluation.folds is not None:
      self._check_folds(len(self.examples(self.config.dataset.eval_split).buckets()))
    if self.takes_features:
      return
    size, known = len(self.tokenizer.vocabulary), self.model.vocab_size
    if size > known:
      raise ValueError(
        f'dataset.vocabulary has {size} word pieces, {self.config.model.name!r} knows {known}: set '
        'config.model.vocab_size, or the vocabulary of its text encoder'
      )

  def train_data(
    self, batch_size: int, block: int, num_blocks: int, start: int = 0
  ) -> grain.IterDataset:
    """Endless batches of pairs, from number `start` on.

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
    return super().train_data(batch_size, block, num_blocks, start)

  @property
  def unit(self) -> str:
    """Each image comes with one caption."""
    return 'pairs'

  def evaluate(self, variables: base.Variables, batch: base.Batch) -> base.Evaluation:
    """Encodes images `[batch, ...]` and their captions `[batch, captions, ...]`, each alone."""
    rows, captions, _ = batch['word_mask'].shape
    apply = functools.partial(self.model.apply, variables)
    images = apply(batch['regions'], batch['region_mask'], method='encode_images')
    texts = scoring.flat({name: batch[name] for name in ('words', 'word_mask')})
    texts = apply(texts['words'], texts['word_mask'], method='encode_texts')
    texts = jax.tree.map(lambda x: x.reshape(rows, captions, *x.shape[1:]), texts)
    return base.Evaluation(
      sums={'count': jnp.sum(batch['mask'], dtype=jnp.int32)},
      examples={'images': images, 'texts': texts, 'index': batch['image']},
    )

  def evaluate_examples(
    self, variables: base.Variables, examples: Any
  ) -> dict[str, list[np.ndarray | scoring.Reranked]]:
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
    score = self.scorer.all_pairs
    if config.rerank_topk is not None:
      score = functools.partial(self.scorer.best_pairs, top_k=config.rerank_topk)
    scores: dict[str, list[np.ndarray | scoring.Reranked]] = {}
    if config.all_pairs:
      scores[self._beginning] = [score(variables, images, scoring.flat(texts))]
    if config.folds is not None:
      self._check_folds(count)
      folds = scores[f'{self._beginning}folds/'] = []
      size = count // config.folds
      for start in range(0, count, size):
        rows = slice(start, start + size)
        if config.all_pairs and config.rerank_topk is None:
          part = scores[''][0][rows, start * captions : (start + size) * captions]
        else:
          # The best of a fold are others than the best of all.
          fold = jax.tree.map(lambda x, rows=rows: x[rows], (images, texts))
          part = score(variables, fold[0], scoring.flat(fold[1]))
        folds.append(part)
    return scores

  def _check_folds(self, images: int) -> None:
    folds = self.config.task.evaluation.folds
    if images % folds:
      raise ValueError(
        f'config.task.evaluation.folds={folds} do not divide the {images} images of split '
        f'{self.config.dataset.eval_split!r}; set it to None, or dataset.eval_images'
      )

  def review(self, evaluation: base.Evaluation, examples: Any) -> review.Review:
    """The images and captions that find their own last, and what they find instead."""
    parts = next(iter(evaluation.examples.values()))
    numbers = np.split(examples['index'], len(parts))
    return review.Review(mistakes=mistakes.worst_queries(parts, numbers))

  @property
  def metric_modes(self) -> dict[str, str]:
    """Of each part of `evaluate_examples`, all that papers print."""
    config = self.config.task.evaluation
    parts = [''] * config.all_pairs + ['folds/'] * (config.folds is not None)
    return {
      f'{self._beginning}{part}{name}': mode
      for part in parts
      for name, mode in metrics.MODES.items()
    }

  @property
  def main_metrics(self) -> list[str]:
    """The sum of all recalls, and some of them, of the first part."""
    names = list(self.metric_modes)[: len(metrics.MODES)]
    return [name for name in names if name.endswith(('rsum', '_r1', '_r5'))]

  @property
  def metric_words(self) -> dict[str, str]:
    """Of the whole split, and of its folds."""
    top_k = self.config.task.evaluation.rerank_topk
    best = '' if top_k is None else f', {top_k} of which are scored together'
    words = {}
    for name, meaning in metrics.WORDS.items():
      words[f'{self._beginning}{name}'] = meaning + best
      words[f'{self._beginning}folds/{name}'] = f'{meaning}{best}, mean over folds'
    return words

  @property
  def _beginning(self) -> str:
    """Of the names of all metrics."""
    top_k = self.config.task.evaluation.rerank_topk
    return '' if top_k is None else f'rerank_top{top_k}/'

  def metrics(self, evaluation: base.Evaluation) -> dict[str, float]:
    """What `metrics.retrieval_metrics` has, means over folds as 'folds/NAME', number of images."""
    results = {}
    for prefix, parts in evaluation.examples.items():
      tables = [_table(scores) for scores in parts]
      for name in tables[0]:
        results[prefix + name] = float(np.mean([table[name] for table in tables]))
    return results | {'examples': int(evaluation.sums['count'])}


def _table(scores: np.ndarray | scoring.Reranked) -> dict[str, float]:
  """The metrics of a part of the split."""
  of_texts = None
  if isinstance(scores, scoring.Reranked):
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
