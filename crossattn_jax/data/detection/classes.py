"""The classes of a data set, mapped by name to those that a run counts through."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses

import numpy as np

from crossattn_jax.data import sources


@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
  """Classes of a run in a data set.

  Attributes:
    names: in the order of the labels.
    numbers: of each, by which the data set calls it; those of classes that it has not follow on its
      largest.
    labels: int32 `[own]`: of every class of the data set, -1 for those that are none of the run.
  """

  names: tuple[str, ...]
  numbers: tuple[int, ...]
  labels: np.ndarray


def by_name(
  own: Mapping[str, int], used: Collection[str], expected: Sequence[str], where: str
) -> Classes:
  """Maps the classes of a data set.

  Args:
    own: their names, in order, and the data set's number of each.
    used: names of those that objects have.
    expected: names of the classes of the run; empty where they are the data set's.
    where: the data set, for the message.

  Raises:
    ValueError: objects have a class that is none of the run.
  """
  names = tuple(expected) or tuple(own)
  unknown = [name for name in own if name in used and name not in names]
  if unknown:
    raise sources.unknown_classes(where, unknown, names)
  largest, missing = max(own.values()), [name for name in names if name not in own]
  numbers = dict(own) | {name: largest + place for place, name in enumerate(missing, 1)}
  labels = [names.index(name) if name in names else -1 for name in own]
  return Classes(names, tuple(numbers[name] for name in names), np.array(labels, np.int32))
