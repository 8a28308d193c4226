"""From a data set to batches, by Grain: what the input pipelines of all tasks have in common.

The stream of training examples is a function of the seed alone; where batches have one of several
shapes, of the batch size too. Global batch k holds positions k * batch_size ... (k + 1) *
batch_size of it, whatever the number of processes, workers and threads; process p of P gets the
p-th of P equal contiguous runs of its rows. What is random about an example depends on (seed,
position) only.
"""

import abc
from collections.abc import Callable, Hashable, Sequence
import functools
import signal
from typing import Any, TypeVar

from absl import flags, logging
import grain
import ml_collections
import numpy as np

_Bucket = TypeVar('_Bucket', bound=Hashable)


class UnreadableError(ValueError):
  """An example that cannot be read; the message gives the reason."""


def add_options(config: ml_collections.ConfigDict) -> None:
  """Adds the keys that every `config.dataset` has."""
  # Whether training examples come in another order in every epoch.
  config.shuffle = True
  # 'error' stops at an example that cannot be read, 'skip' replaces it (training) or masks it.
  config.unreadable = 'error'
  # Worker processes; 0 works in threads of this process.
  config.num_workers = 0
  # Threads per (worker) process, each building one batch.
  config.num_threads = 2
  # Keeps decoded training examples in the memory of each (worker) process: for small data sets.
  config.cache = False
  # Batches that each (worker) process holds ready.
  config.prefetch = 2


def requirement(config: ml_collections.ConfigDict) -> Callable[[bool, str, str], None]:
  """Returns `require(condition, key, expected)`, which refuses values of `config.dataset` by name.

  It raises ValueError where the condition does not hold; the key may be one of a section, 'a.b'.
  """

  def require(condition: bool, key: str, expected: str) -> None:
    if not condition:
      value: Any = config
      for part in key.split('.'):
        value = value[part]
      raise ValueError(f'dataset.{key} must be {expected}, got {value!r}')

  return require


def check_options(config: ml_collections.ConfigDict) -> None:
  """Refuses wrong values of the keys of `add_options`.

  Raises:
    ValueError: names the key.
  """
  require = requirement(config)
  require(config.unreadable in ('error', 'skip'), 'unreadable', "'error' or 'skip'")
  require(config.num_workers >= 0, 'num_workers', 'at least 0')
  require(config.num_threads >= 1, 'num_threads', 'at least 1')
  require(config.prefetch >= 1, 'prefetch', 'at least 1 batch')


class Examples(abc.ABC):
  """The examples of a split in the form that a task learns from and is evaluated on.

  A task says how one example is decoded, augmented and prepared. Order, unreadable examples,
  batches and processes are the same for all. Grain's workers get copies.

  Attributes:
    kind: what an example is called in messages.
    config: `config.dataset`.
    split: of the data set.
    source: random access to its examples, not decoded.
  """

  kind = 'example'

  def __init__(self, config: ml_collections.ConfigDict, split: str, source: Any = None):
    """Opens a split.

    Args:
      config: `config.dataset`.
      split: usually its `train_split` or `eval_split`.
      source: of the examples where they are none of the data set; what `open_source` opens by
        default.

    Raises:
      ValueError: a wrong value in the config, or a data set that cannot be opened.
    """
    check_options(config)
    self.check(config)
    if split is None:
      raise ValueError(
        'dataset.train_split or dataset.eval_split is None: name a split, or let '
        'tasks.complete_config(config) find it'
      )
    self.config, self.split = config, split
    self.source = self.open_source(config, split) if source is None else source
    self._cache: dict[int, tuple[Any, int, int]] | None = {} if config.cache else None

  # What is a task's own.

  @staticmethod
  @abc.abstractmethod
  def check(config: ml_collections.ConfigDict) -> None:
    """Refuses wrong values of the task's keys; raises ValueError, which names the key."""

  @staticmethod
  @abc.abstractmethod
  def open_source(config: ml_collections.ConfigDict, split: str) -> Any:
    """Opens a split of the data set that the config names, for random access."""

  @abc.abstractmethod
  def decode(self, index: int) -> Any:
    """Reads an example; raises UnreadableError."""

  @abc.abstractmethod
  def train_example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A row of a training batch, mostly of `next_readable(index)`."""

  @abc.abstractmethod
  def eval_example(self, decoded: Any | None, index: int, bucket: Any) -> dict[str, np.ndarray]:
    """A row of an evaluation batch but for `mask` and `skipped`; None is to be padding."""

  def describe(self, index: int) -> str:
    """An example that cannot be read, for the message."""
    return f'{self.kind} {self.source[index]["key"]!r}'

  @property
  def epoch_length(self) -> int:
    """Rows of training batches in an epoch."""
    return len(self.source)

  def epoch(self, seed: int) -> grain.MapDataset:
    """The indices of an epoch, in another order in each."""
    return self.shuffled(self.epoch_length, seed)

  def indices(self, seed: int, batch_size: int) -> grain.MapDataset:
    """The endless stream of indices of training examples, of which `batch_size` make a batch."""
    del batch_size  # For tasks whose batches have one of several shapes.
    return self.epoch(seed).repeat()

  def buckets(self) -> Sequence[Hashable]:
    """Of each evaluation example; only those of one bucket, such as a shape, share batches."""
    return [None] * len(self.source)

  def example_of(self, index: int) -> int:
    """The example of the source that an evaluation example is of, where these are more."""
    return index

  # What is the same for all.

  def shuffled(self, length: int, seed: int) -> grain.MapDataset:
    """The numbers below `length`, in random order unless `config.shuffle` is off."""
    numbers = grain.MapDataset.range(length)
    return numbers.shuffle(seed) if self.config.shuffle else numbers

  def read(self, index: int) -> Any | None:
    """Decodes an example; None if that fails and `config.unreadable` is 'skip', which is logged.

    Raises:
      ValueError: it cannot be read and is not to be skipped.
    """
    try:
      return self.decode(index)
    except UnreadableError as error:
      message = f'unreadable {self.describe(index)} of {self._described()}: {error}'
      if self.config.unreadable == 'error':
        raise ValueError(
          f"{message}; repair or remove it, or set dataset.unreadable = 'skip'"
        ) from error
      logging.warning('skipped %s', message)
      return None

  def _described(self) -> str:
    return f'dataset {self.config.name!r}, split {self.split!r}'

  def next_readable(self, index: int) -> tuple[Any, int, int]:
    """Decodes the example at an index, or else the next one that can be read, around the end.

    Returns:
      What `decode` returned, the index of that example, and how many were skipped.

    Raises:
      ValueError: none can be read.
    """
    if self._cache is None:
      return self._next_readable(index)
    if index not in self._cache:
      self._cache[index] = self._next_readable(index)
    return self._cache[index]

  def _next_readable(self, index: int) -> tuple[Any, int, int]:
    count = len(self.source)
    for skipped in range(count):
      found = (index + skipped) % count
      decoded = self.read(found)
      if decoded is not None:
        return decoded, found, skipped
    raise ValueError(
      f'none of the {count} {self.kind}s of {self.config.name!r}, split {self.split!r}, can be read'
    )

  def train_stream(self, seed: int, batch_size: int = 1) -> grain.MapDataset:
    """Returns the endless stream of augmented examples that `train_batches` batches.

    Element i is computed when it is asked for, alone: `train_stream(seed)[i]`.

    Args:
      seed: of order and augmentation.
      batch_size: elements that are batched together, where they have one of several shapes.
    """
    order_seed, example_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    return self.indices(order_seed, batch_size).random_map(self.train_example, seed=example_seed)

  def train_batches(
    self,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
  ) -> grain.IterDataset:
    """Returns the endless training batches of one process.

    Args:
      batch_size: global, over all processes.
      seed: of order and augmentation.
      process_index: whose rows.
      process_count: number of processes, which divides `batch_size`.
      start: number of the first batch; those before it are not read.

    Returns:
      Batches of numpy arrays, b = batch_size / process_count: what the task makes of examples, and
      `skipped` int32 `[b]`, the number of unreadable examples that a row stands in for. The
      iterator's `get_state` and `set_state` resume bit-exactly, for the same batch size and numbers
      of processes and workers.
    """
    stream = self.train_stream(seed, batch_size)
    return batches(stream, self.config, batch_size, process_index, process_count, start)

  def eval_batches(
    self,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    indices: Sequence[int] | None = None,
  ) -> grain.IterDataset:
    """Returns one pass over the split for one process, in its order within each bucket.

    The last batch of a bucket is filled up with rows whose mask is False, so that a masked mean
    counts every example exactly once. Every process gets the same shapes in the same order.

    Args:
      batch_size: global, over all processes.
      process_index: whose rows.
      process_count: number of processes, which divides `batch_size`.
      indices: of the examples; all by default.

    Returns:
      Batches as those of `train_batches`, and `mask`: bool `[b]`, False for padding and for
      unreadable examples, of which `skipped` is 1; and `index` int32 `[b]`, which example a row is,
      unless the task says that itself.
    """
    slots = bucket_slots(self.buckets(), batch_size, indices)
    rows = grain.MapDataset.range(len(slots)).map(functools.partial(self._slot, slots))
    return batches(rows, self.config, batch_size, process_index, process_count)

  def sample_batch(self, count: int) -> dict[str, np.ndarray]:
    """A batch of `count` examples, evenly spread over those that share the first one's bucket.

    A split is often sorted by class. Rows are those of `eval_batches`.
    """
    buckets = self.buckets()
    members = [index for index, bucket in enumerate(buckets) if bucket == buckets[0]]
    places = np.unique(np.linspace(0, len(members) - 1, count).astype(int))
    return self.batch_of([members[place] for place in places], count)

  def batch_of(self, indices: Sequence[int], size: int) -> dict[str, np.ndarray]:
    """A batch with the rows that `eval_batches` has of some examples of one bucket.

    Args:
      indices: at least one.
      size: of the batch, which is filled up to it.
    """
    bucket = self.buckets()[indices[0]]
    chosen = [*indices, *[-1] * (size - len(indices))]
    rows = [self._slot([(bucket, index)], 0) for index in chosen]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def _slot(self, slots: Sequence[tuple[Any, int]], slot: int) -> dict[str, np.ndarray]:
    bucket, index = slots[slot]
    decoded = self.read(self.example_of(index)) if index >= 0 else None
    return {
      'index': np.int32(index),
      **self.eval_example(decoded, index, bucket),
      'mask': np.bool_(decoded is not None),
      'skipped': np.int32(decoded is None and index >= 0),
    }

  def steps_per_epoch(self, batch_size: int) -> int:
    """Number of whole global batches in an epoch, at least 1."""
    return max(1, self.epoch_length // batch_size)


@functools.lru_cache
def image_sizes(
  create_source: Callable[..., Any], name: str, split: str, data_dir: str | None, upright: bool
) -> tuple[tuple[int, int], ...]:
  """(height, width) of every image of a split; read once, however often it is evaluated.

  Args:
    create_source: (name, split, data_dir) -> the split.
    name: of the data set.
    split: of it.
    data_dir: where it is.
    upright: whether images are turned as their EXIF orientation says.
  """
  source = create_source(name, split, data_dir)
  return tuple(source.image_size(index, upright) for index in range(len(source)))


def bucket_slots(
  buckets: Sequence[_Bucket], batch_size: int, indices: Sequence[int] | None = None
) -> list[tuple[_Bucket, int]]:
  """Sorts examples into batches of one bucket, such as a shape, each.

  Args:
    buckets: of every example, in their order.
    batch_size: the last batch of a bucket is filled up to it.
    indices: of the examples that are wanted; all by default.

  Returns:
    Bucket and index of the example in each row of each batch; index -1 fills up.
  """
  members: dict[_Bucket, list[int]] = {}
  for index in range(len(buckets)) if indices is None else indices:
    members.setdefault(buckets[index], []).append(index)
  return [
    (bucket, index)
    for bucket, indices in members.items()
    for index in indices + [-1] * (-len(indices) % batch_size)
  ]


def batches(
  examples: grain.MapDataset,
  config: ml_collections.ConfigDict,
  batch_size: int,
  process_index: int,
  process_count: int,
  start: int = 0,
) -> grain.IterDataset:
  """Batches, picks the rows of one process, and works ahead in threads or worker processes.

  Args:
    examples: of all processes; endless, or as many as fill the last global batch.
    config: with `num_threads`, `num_workers` and `prefetch`.
    batch_size: global, over all processes.
    process_index: whose rows.
    process_count: number of processes.
    start: number of the first batch.

  Raises:
    ValueError: the processes do not divide the batch, or there is no such process.
  """
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f'batch_size must be a positive multiple of the {process_count} processes, got {batch_size}'
    )
  if not 0 <= process_index < process_count:
    raise ValueError(f'process_index must be in [0, {process_count}), got {process_index}')
  rows = batch_size // process_count
  # Otherwise Grain rounds the number of batches up in floating point, which overflows where an
  # endless stream has batches of one.
  own = examples.batch(rows, drop_remainder=True)[
    start * process_count + process_index :: process_count
  ]
  iterator = own.to_iter_dataset(
    grain.ReadOptions(
      num_threads=config.num_threads, prefetch_buffer_size=max(config.prefetch, config.num_threads)
    )
  )
  if config.num_workers:
    if not flags.FLAGS.is_parsed():
      # Grain's workers read absl flags, which nobody parses in a notebook.
      flags.FLAGS.mark_as_parsed()
    iterator = iterator.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=config.num_workers, per_worker_buffer_size=max(1, config.prefetch)
      ),
      worker_init_fn=_ignore_interrupts,
    )
  return iterator


def _ignore_interrupts(worker: int, num_workers: int) -> None:
  """A terminal sends Ctrl-C to the workers too, but they end when their program says so."""
  del worker, num_workers
  signal.signal(signal.SIGINT, signal.SIG_IGN)
