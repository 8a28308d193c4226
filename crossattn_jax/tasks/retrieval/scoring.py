"""Scores of all pairs of images and sentences: by blocks, each of them split over the devices."""

import collections
from collections.abc import Callable, Iterator, Mapping
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import rich.console
import rich.progress

from crossattn_jax import parallel

# Encoded images or sentences by name, each `[items, ...]`, on the host.
Encoded = Mapping[str, np.ndarray]

# Blocks that may be under way on the devices while the host reads an earlier one.
_BLOCKS_AHEAD = 2
# Captions per image in the blocks of all pairs: as many as images have.
_BLOCK_TEXTS = 5


class Reranked(NamedTuple):
  """Scores that are complete for the best few pairs of every query only.

  Attributes:
    of_images: by which images search for texts, `[images, texts]`.
    of_texts: by which texts search for images, `[images, texts]`.
  """

  of_images: np.ndarray
  of_texts: np.ndarray


class Scorer:
  """Scores pairs of encoded images and sentences, as the model's cross-attention does.

  The items of a block are split over the `data` and `fsdp` axes of the ambient mesh. Memory of the
  devices is bounded by the block, whatever the number of items; the host has the encoded items and
  the scores. A terminal shows a progress bar.

  Attributes:
    model: with methods `score(images, texts, chunk)` and `embed_pairs(images, texts)`.
    chunk: sentences that are paired with the images at a time.
    rows: images per block.
  """

  def __init__(self, model: nn.Module, chunk: int, rows: int):
    self.model, self.chunk, self.rows = model, chunk, rows

  @functools.cached_property
  def score_block(self) -> Callable[..., jax.Array]:
    """The jitted `(variables, images, texts) -> scores [images, texts]`, all on all devices."""

    @jax.jit
    def score(variables, images, texts):
      scores = self.model.apply(variables, images, texts, chunk=self.chunk, method='score')
      return parallel.constrain(scores, None, None)

    return score

  @functools.cached_property
  def score_pairs(self) -> Callable[..., jax.Array]:
    """The jitted `(variables, images, texts) -> similarities [pairs]` of images with texts."""

    @jax.jit
    def score(variables, images, texts):
      image, text, _ = self.model.apply(variables, images, texts, method='embed_pairs')
      return parallel.constrain(jnp.sum(image * text, axis=-1), None)

    return score

  def all_pairs(self, variables: Mapping[str, Any], images: Encoded, texts: Encoded) -> np.ndarray:
    """Scores every sentence for every image.

    Args:
      variables: of the model.
      images: as the model encodes them. With several processes each has all of them.
      texts: likewise; those of a block are on every device.

    Returns:
      `[images, texts]` in the model's dtype of scores.
    """
    num_images, num_texts = (len(items['mask']) for items in (images, texts))
    # One shape is compiled: the last blocks are filled up.
    rows = _divisible(min(self.rows, num_images))
    columns = min(_BLOCK_TEXTS * self.rows, num_texts)
    image_starts, text_starts = range(0, num_images, rows), range(0, num_texts, columns)

    def blocks() -> Iterator[tuple[tuple[int, int], jax.Array]]:
      """Places and scores of blocks, which may still be under way."""
      for column in text_starts:
        text_block = _place(texts, _filled_up(column, columns, num_texts), PartitionSpec())
        for row in image_starts:
          index = _filled_up(row, rows, num_images)
          image_block = _place(images, index, PartitionSpec(parallel.BATCH_AXES))
          yield (row, column), self.score_block(variables, image_block, text_block)

    scores = None
    with _progress_bar() as bar:
      task = bar.add_task('pairs', total=len(image_starts) * len(text_starts))
      for (row, column), values in _read_late(blocks()):
        if scores is None:
          scores = np.empty((num_images, num_texts), values.dtype)
        part = scores[row : row + rows, column : column + columns]
        part[:] = values[: part.shape[0], : part.shape[1]]
        bar.advance(task)
    return scores

  def best_pairs(
    self, variables: Mapping[str, Any], images: Encoded, texts: Encoded, top_k: int
  ) -> Reranked:
    """Scores only pairs that are among the best of their image or text by the embeddings alone.

    An approximation of `all_pairs`: what the embeddings of the items alone rank behind the `top_k`
    best of a query stays behind them, in that order.

    Args:
      variables: of the model.
      images: as the model encodes them. With several processes each has all of them.
      texts: likewise.
      top_k: texts of each image, and images of each text, that are scored; all if there are fewer.

    Returns:
      Scores whose order is that of the results; of pairs that were scored they are the model's.
    """
    similarities, alpha = images['embedding'] @ texts['embedding'].T, self.model.alpha
    best_texts = _are_best(similarities, top_k)
    best_images = _are_best(similarities.T, top_k).T
    rows, columns = np.nonzero(best_texts | best_images)
    block = _divisible(min(self.rows * self.chunk, len(rows)))
    starts = range(0, len(rows), block)

    def blocks() -> Iterator[tuple[int, jax.Array]]:
      for start in starts:
        index, spec = _filled_up(start, block, len(rows)), PartitionSpec(parallel.BATCH_AXES)
        placed = _place(images, rows[index], spec), _place(texts, columns[index], spec)
        yield start, self.score_pairs(variables, *placed)

    scores = similarities.copy()
    with _progress_bar() as bar:
      task = bar.add_task('best pairs', total=len(starts))
      for start, values in _read_late(blocks()):
        places = slice(start, start + block)
        scores[rows[places], columns[places]] += alpha * values[: len(rows) - start]
        bar.advance(task)
    # Both similarities are at least -1.
    behind = similarities - (3 + abs(alpha))
    return Reranked(np.where(best_texts, scores, behind), np.where(best_images, scores, behind))


def flat(texts: Mapping[str, Any]) -> dict[str, Any]:
  """Captions `[images, captions, ...]` as sentences `[images * captions, ...]`."""
  return {name: x.reshape(-1, *x.shape[2:]) for name, x in texts.items()}


def score_batch(
  model: nn.Module, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """Scores every sentence for every image, inside jit.

  Args:
    model: encodes images and texts, and scores them.
    variables: of the model.
    batch: 'regions', 'region_mask', 'words' and 'word_mask' as in training, of any number of images
      and any number of sentences.

  Returns:
    'score' `[images, texts]`; 'image_embedding' `[images, width]` and 'text_embedding' `[texts,
    width]`, of the self-attention module.
  """
  apply = functools.partial(model.apply, variables)
  images = apply(batch['regions'], batch['region_mask'], method='encode_images')
  texts = apply(batch['words'], batch['word_mask'], method='encode_texts')
  return {
    'score': apply(images, texts, method='score'),
    'image_embedding': images['embedding'],
    'text_embedding': texts['embedding'],
  }


def _are_best(scores: np.ndarray, count: int) -> np.ndarray:
  """Which entries are among the `count` largest of their row."""
  result = np.ones(scores.shape, bool)
  if count < scores.shape[1]:
    rest = np.argpartition(-scores, count, axis=1)[:, count:]
    np.put_along_axis(result, rest, False, axis=1)
  return result


def _read_late(blocks: Iterator[tuple[Any, jax.Array]]) -> Iterator[tuple[Any, np.ndarray]]:
  """Reads blocks, each with its place, on the host while later ones are computed."""
  pending = collections.deque()
  for block in blocks:
    pending.append(block)
    if len(pending) > _BLOCKS_AHEAD:
      place, values = pending.popleft()
      yield place, np.asarray(values)
  for place, values in pending:
    yield place, np.asarray(values)


def _divisible(count: int) -> int:
  """At least `count`, for equal parts on the devices over which the ambient mesh splits a batch."""
  mesh = jax.sharding.get_mesh()
  shards = 1 if mesh.empty else mesh.shape['data'] * mesh.shape['fsdp']
  return -(-count // shards) * shards


def _filled_up(start: int, count: int, total: int) -> np.ndarray:
  """The indices of `count` of `total` items; the last one fills up."""
  return np.minimum(np.arange(start, start + count), total - 1)


def _place(items: Encoded, index: np.ndarray, spec: PartitionSpec) -> dict[str, jax.Array]:
  """Puts items on the devices of the ambient mesh."""
  mesh = jax.sharding.get_mesh()

  def put(values: np.ndarray) -> jax.Array:
    taken = values[index]
    if mesh.empty:
      return jnp.asarray(taken)
    return jax.make_array_from_callback(taken.shape, NamedSharding(mesh, spec), taken.__getitem__)

  return jax.tree.map(put, dict(items))


def _progress_bar() -> rich.progress.Progress:
  """On a terminal, and of one process; it disappears when it is done."""
  console = rich.console.Console(stderr=True)
  return rich.progress.Progress(
    rich.progress.TextColumn('{task.description}', markup=False),
    rich.progress.BarColumn(bar_width=20),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(),
    console=console,
    transient=True,
    disable=not console.is_terminal or jax.process_index() > 0,
  )
