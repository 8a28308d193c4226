"""Batches of one group each take turns in proportion, and lose nothing."""

import collections

import grain
import numpy as np
import pytest

from crossattn_jax.data import grouping


def _joint(sizes, batch_size):
  starts = np.cumsum([0, *sizes])
  streams = [
    grain.MapDataset.range(start, start + size).shuffle(1).repeat()
    for start, size in zip(starts[:-1], sizes, strict=True)
  ]
  return grouping.alternate(streams, sizes, batch_size)


@pytest.mark.parametrize(
  ('sizes', 'batch_size'),
  [
    ((9, 3), 2),
    ((3, 9), 4),
    ((5, 1), 3),
    ((1, 1), 1),
    ((7,), 2),
    ((5, 2, 7), 2),
    ((1, 4, 2, 6), 3),
  ],
)
def test_batches_are_of_one_group_and_epochs_of_all(sizes, batch_size):
  total = sum(sizes)
  stream = _joint(sizes, batch_size)
  batches = [
    [stream[batch * batch_size + row] for row in range(batch_size)] for batch in range(2 * total)
  ]
  ends = np.cumsum(sizes)
  groups = [set(np.searchsorted(ends, batch, 'right').tolist()) for batch in batches]
  assert all(len(group) == 1 for group in groups)
  # Every element comes equally often in as many batches as divide evenly.
  counts = collections.Counter(number for batch in batches for number in batch)
  assert set(counts) == set(range(total))
  assert max(counts.values()) - min(counts.values()) <= 1
  # At any time each group has had its share.
  for number, size in enumerate(sizes):
    had = np.cumsum([group == {number} for group in groups])
    share = (1 + np.arange(2 * total)) * size / total
    assert np.abs(had - share).max() <= (0.5 if len(sizes) <= 2 else 1)


def test_every_epoch_has_another_order():
  stream = _joint((12, 4), 4)
  batches = [tuple(stream[4 * batch + row] for row in range(4)) for batch in range(12)]
  assert len(set(batches)) == 12
