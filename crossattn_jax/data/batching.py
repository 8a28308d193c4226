"""What the input pipelines of all tasks have in common: batches of one process, by Grain."""

from absl import flags
import grain
import ml_collections


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
    examples: of all processes.
    config: with `num_threads`, `num_workers` and `prefetch`.
    rows: of a batch of one process.
    process_index: whose rows.
    process_count: number of processes.
  """
  batches = examples.batch(rows)[process_index::process_count]
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
