"""Batches on their way from the data set to the devices."""

import collections
from collections.abc import Iterator
import dataclasses
import itertools

import grain
import jax
from jax.sharding import Mesh
import numpy as np

from crossattn_jax import parallel


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
  """A global batch on the devices.

  Attributes:
    arrays: the batch.
    skipped: unreadable examples of this process that were replaced.
  """

  arrays: dict[str, jax.Array]
  skipped: int


def device_batches(
  iterator: grain.DatasetIterator, mesh: Mesh, prefetch: int = 2
) -> Iterator[LoadedBatch]:
  """Copies batches to the devices ahead of their use.

  Args:
    iterator: of this process' batches.
    mesh: of the run.
    prefetch: batches that are under way while one is in use.

  Yields:
    Each batch in turn.
  """

  def load() -> Iterator[LoadedBatch]:
    for batch in iterator:
      skipped = int(np.sum(batch.pop('skipped', 0)))
      yield LoadedBatch(parallel.global_batch(batch, mesh), skipped)

  batches = load()
  queue = collections.deque(itertools.islice(batches, prefetch))
  while queue:
    yield queue.popleft()
    queue.extend(itertools.islice(batches, 1))
