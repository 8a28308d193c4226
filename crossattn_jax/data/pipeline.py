"""What the input pipelines of all tasks have in common: options, unreadable examples, batches."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from absl import flags, logging
import grain
import ml_collections

_Decoded = TypeVar('_Decoded')
_Bucket = TypeVar('_Bucket', bound=Hashable)


def add_options(config: ml_collections.ConfigDict) -> None:
  """Adds the keys that every `config.dataset` has."""
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


def refuse_or_skip(message: str, error: Exception, config: ml_collections.ConfigDict) -> None:
  """Deals with an example that cannot be read as `config.unreadable` says.

  Args:
    message: names the example.
    error: why it cannot be read.
    config: `config.dataset`.

  Raises:
    ValueError: unless it is to be skipped, which is logged.
  """
  if config.unreadable == 'error':
    raise ValueError(
      f"{message}; repair or remove it, or set dataset.unreadable = 'skip'"
    ) from error
  logging.warning('skipped %s', message)


def next_readable(
  source: Sequence[Any],
  index: int,
  decode: Callable[[Any], _Decoded | None],
  described: str,
) -> tuple[_Decoded, Any, int]:
  """Reads the example at an index, or else the next one that can be read, around the end.

  Args:
    source: of examples.
    index: of the first one to try.
    decode: returns None for an example that is to be skipped.
    described: the examples and where they are from, for the message.

  Returns:
    What `decode` returned, the example, and how many were skipped.

  Raises:
    ValueError: none can be read.
  """
  count = len(source)
  for skipped in range(count):
    example = source[(index + skipped) % count]
    decoded = decode(example)
    if decoded is not None:
      return decoded, example, skipped
  raise ValueError(f'none of the {count} {described} can be read')


def bucket_slots(buckets: Iterable[_Bucket], batch_size: int) -> list[tuple[_Bucket, int]]:
  """Sorts examples into batches of one bucket, such as a shape, each.

  Args:
    buckets: of every example, in their order.
    batch_size: the last batch of a bucket is filled up to it.

  Returns:
    Bucket and index of the example in each row of each batch; index -1 fills up.
  """
  members: dict[_Bucket, list[int]] = {}
  for index, bucket in enumerate(buckets):
    members.setdefault(bucket, []).append(index)
  return [
    (bucket, index)
    for bucket, indices in members.items()
    for index in indices + [-1] * (-len(indices) % batch_size)
  ]


def rows_per_process(batch_size: int, process_index: int, process_count: int) -> int:
  """Rows of a global batch that one process has.

  Raises:
    ValueError: the processes do not divide the batch, or there is no such process.
  """
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f'batch_size must be a positive multiple of the {process_count} processes, got {batch_size}'
    )
  if not 0 <= process_index < process_count:
    raise ValueError(f'process_index must be in [0, {process_count}), got {process_index}')
  return batch_size // process_count


def iterate(
  examples: grain.MapDataset,
  config: ml_collections.ConfigDict,
  rows: int,
  process_index: int,
  process_count: int,
) -> grain.IterDataset:
  """Batches, picks the rows of one process, and works ahead in threads or worker processes.

  Args:
    examples: of all processes; endless, or as many as fill the last global batch.
    config: with `num_threads`, `num_workers` and `prefetch`.
    rows: of a batch of one process.
    process_index: whose rows.
    process_count: number of processes.
  """
  # Otherwise Grain rounds the number of batches up in floating point, which overflows where an
  # endless stream has batches of one.
  batches = examples.batch(rows, drop_remainder=True)[process_index::process_count]
  iterator = batches.to_iter_dataset(
    grain.ReadOptions(
      num_threads=config.num_threads,
      prefetch_buffer_size=max(config.prefetch, config.num_threads),
    )
  )
  if config.num_workers:
    if not flags.FLAGS.is_parsed():
      # Grain's workers read absl flags, which nobody parses in a notebook.
      flags.FLAGS.mark_as_parsed()
    iterator = iterator.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=config.num_workers, per_worker_buffer_size=max(1, config.prefetch)
      )
    )
  return iterator
