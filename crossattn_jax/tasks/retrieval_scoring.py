"""Scores of all pairs of images and sentences: by blocks, each of them split over the devices."""

import collections
from collections.abc import Callable, Iterator, Mapping
from typing import Any

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


def create_block_scorer(model: nn.Module, chunk: int) -> Callable[..., jax.Array]:
  """Returns the jitted `(variables, images, texts) -> scores [images, texts]`, all on all devices.

  Args:
    model: with a method `score(images, texts, chunk)`.
    chunk: sentences that are paired with the images at a time.
  """

  @jax.jit
  def score(variables, images, texts):
    scores = model.apply(variables, images, texts, chunk=chunk, method='score')
    return parallel.constrain(scores, None, None)

  return score


def score_all_pairs(
  score_block: Callable[..., jax.Array],
  variables: Mapping[str, Any],
  images: Encoded,
  texts: Encoded,
  block: tuple[int, int],
) -> np.ndarray:
  """Scores every sentence for every image.

  The images of a block are split over the `data` and `fsdp` axes of the ambient mesh, its sentences
  are on every device. Memory of the devices is bounded by the block, whatever the number of items;
  the host has the encoded items and the scores. A terminal shows a progress bar.

  Args:
    score_block: see `create_block_scorer`. It sees one shape: the last blocks are filled up.
    variables: of the model.
    images: as the model encodes them. With several processes each has all of them.
    texts: likewise.
    block: images and sentences per block.

  Returns:
    `[images, texts]` in the model's dtype of scores.
  """
  mesh = jax.sharding.get_mesh()
  shards = 1 if mesh.empty else mesh.shape['data'] * mesh.shape['fsdp']
  num_images, num_texts = (len(items['mask']) for items in (images, texts))
  rows = -(-min(block[0], num_images) // shards) * shards
  columns = min(block[1], num_texts)
  image_starts, text_starts = range(0, num_images, rows), range(0, num_texts, columns)

  def blocks() -> Iterator[tuple[int, int, jax.Array]]:
    """Places and scores of blocks, which may still be under way."""
    for column in text_starts:
      text_block = _place(texts, column, columns, PartitionSpec())
      for row in image_starts:
        image_block = _place(images, row, rows, PartitionSpec(parallel.BATCH_AXES))
        yield row, column, score_block(variables, image_block, text_block)

  scores = None
  with _progress_bar() as bar:
    task = bar.add_task('pairs', total=len(image_starts) * len(text_starts))
    for row, column, values in _read_late(blocks()):
      if scores is None:
        scores = np.empty((num_images, num_texts), values.dtype)
      part = scores[row : row + rows, column : column + columns]
      part[:] = values[: part.shape[0], : part.shape[1]]
      bar.advance(task)
  return scores


def _read_late(
  blocks: Iterator[tuple[int, int, jax.Array]],
) -> Iterator[tuple[int, int, np.ndarray]]:
  """Reads blocks on the host while later ones are computed."""
  pending = collections.deque()
  for block in blocks:
    pending.append(block)
    if len(pending) > _BLOCKS_AHEAD:
      row, column, values = pending.popleft()
      yield row, column, np.asarray(values)
  for row, column, values in pending:
    yield row, column, np.asarray(values)


def _place(items: Encoded, start: int, count: int, spec: PartitionSpec) -> dict[str, jax.Array]:
  """Puts `count` items on the devices of the ambient mesh; the last one fills up."""
  index = np.minimum(np.arange(start, start + count), len(items['mask']) - 1)
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
