"""Batches of one group each, such as images of one orientation, from endless streams of them."""

from collections.abc import Sequence
import dataclasses

import grain


def alternate(
  streams: Sequence[grain.MapDataset], sizes: Sequence[int], batch_size: int
) -> grain.MapDataset:
  """Joins endless streams so that each batch is of one of them, in proportion to their sizes.

  Which stream a batch is of depends on its number alone. After any number of batches, each stream
  has had its share of them to within one.

  Args:
    streams: at least one.
    sizes: elements in an epoch of each.
    batch_size: consecutive elements that are of one stream.

  Returns:
    An endless stream, any element of which can be asked for.
  """
  first, *others = streams
  if not others:
    return first
  rest = alternate(others, sizes[1:], batch_size)
  numbers = grain.MapDataset.range(sum(sizes)).repeat()
  shares = (sizes[0], sum(sizes[1:]))
  return numbers.map_with_index(_Alternating((first, rest), shares, batch_size))


@dataclasses.dataclass(frozen=True)
class _Alternating:
  """Element of two joint streams by its position."""

  streams: tuple[grain.MapDataset, grain.MapDataset]
  sizes: tuple[int, int]
  batch_size: int

  def __call__(self, position: int, _: int) -> int:
    batch, row = divmod(position, self.batch_size)
    before, after = self._of_second(batch), self._of_second(batch + 1)
    second = after > before
    return self.streams[second][(before if second else batch - before) * self.batch_size + row]

  def _of_second(self, batches: int) -> int:
    """How many of the first batches are of the second stream."""
    first, second = self.sizes
    return (2 * batches * second + first + second) // (2 * (first + second))
