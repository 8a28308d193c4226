"""The classes of a data set, mapped by name to those that a run counts through."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses

import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data import sources

# What objects of classes that are none of the run are: a mistake, or left out.
OTHERS = ('error', 'skip')


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
  own: Mapping[str, int],
  used: Collection[str],
  expected: Sequence[str],
  where: str,
  others: str = 'error',
) -> Classes:
  """Maps the classes of a data set.

  Args:
    own: their names, in order, and the data set's number of each.
    used: names of those that objects have.
    expected: names of the classes of the run; empty where they are the data set's.
    where: the data set, for the message.
    others: one of `OTHERS`.

  Raises:
    ValueError: `others` is none of `OTHERS`; objects have a class that is none of the run, and are
      no mistake; or they are left out, but the run's class is called nearly so, or the data set
      has none of the run's.
  """
  if others not in OTHERS:
    raise ValueError(f'dataset.other_classes must be one of {OTHERS}, got {others!r}')
  names = tuple(expected) or tuple(own)
  unknown = [name for name in own if name in used and name not in names]
  if unknown and others == 'error':
    error = sources.unknown_classes(where, unknown, names)
    raise ValueError(f"{error}; dataset.other_classes='skip' leaves out the others")
  largest, missing = max(own.values()), [name for name in names if name not in own]
  slips = [name for name in missing if config_errors.near_names(name, unknown)]
  if unknown and (slips or len(missing) == len(names)):
    wrong = (slips or missing)[0]
    raise config_errors.UnknownName(
      f'dataset.class_names has {wrong!r}, but {where} has no such class; '
      f'{config_errors.near_names(wrong, unknown)}it has {sources.shown(list(own))}',
      wrong,
      own,
    )
  numbers = dict(own) | {name: largest + place for place, name in enumerate(missing, 1)}
  labels = [names.index(name) if name in names else -1 for name in own]
  return Classes(names, tuple(numbers[name] for name in names), np.array(labels, np.int32))


def say_left_out(labels: np.ndarray, where: str) -> None:
  """Says how many objects are none of the run's, which have the label -1."""
  if count := np.sum(labels < 0):
    sources.say_once(
      f'{count} of {len(labels)} objects of {where} are of other classes than dataset.class_names, '
      'and left out'
    )
