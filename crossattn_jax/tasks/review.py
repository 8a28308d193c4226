"""What an evaluation shows beyond its metrics: what is taken for what, and the worst examples."""

from collections.abc import Callable, Sequence
import csv
import dataclasses
import io

import numpy as np

# Mistakes that are kept: more than a picture shows.
MOST_MISTAKES = 100
# Of a matrix: with ten thousand its table has a hundred million numbers.
MOST_CLASSES = 2000


@dataclasses.dataclass(frozen=True)
class Confusion:
  """How often what is of one class was said to be of another.

  Attributes:
    counts: `[true, predicted]`.
    names: of the true classes.
    predicted: names of the predicted ones, where these are others.
    unit: what is counted, such as 'images'.
    totals: what the counts of each true class are shares of, `[true]`; their sum by default.
  """

  counts: np.ndarray
  names: Sequence[str]
  unit: str
  predicted: Sequence[str] = ()
  totals: np.ndarray | None = None

  @property
  def columns(self) -> Sequence[str]:
    """Names of the predicted classes."""
    return self.predicted or self.names

  @property
  def shares(self) -> np.ndarray:
    """The counts as shares of each true class `[true, predicted]`; NaN of one that has none."""
    totals = self.counts.sum(axis=1) if self.totals is None else np.asarray(self.totals)
    totals = totals.astype(np.float64)[:, None]
    return np.divide(self.counts, totals, out=np.full(self.counts.shape, np.nan), where=totals > 0)

  def to_csv(self) -> str:
    """A line per true class with the counts of each predicted one."""
    rows = ([name, *map(int, row)] for name, row in zip(self.names, self.counts, strict=True))
    return _csv([[f'true \\ predicted ({self.unit})', *self.columns], *rows])


@dataclasses.dataclass(frozen=True)
class Mistake:
  """An example that is among the worst.

  Attributes:
    index: among the examples of the evaluation split.
    error: how wrong it is; larger is worse.
    text: the same in a few words, such as 'loss 4.2'.
  """

  index: int
  error: float
  text: str


@dataclasses.dataclass(frozen=True)
class Review:
  """What an evaluation shows.

  Attributes:
    confusion: of classes; None where there are none, or more than `MOST_CLASSES`.
    mistakes: the worst first.
  """

  confusion: Confusion | None = None
  mistakes: Sequence[Mistake] = ()


def worst(index: np.ndarray, error: np.ndarray, describe: Callable[[int], str]) -> list[Mistake]:
  """The examples with the largest errors above 0.

  Args:
    index: of each example among those of the evaluation split, int `[n]`.
    error: of each, `[n]`; larger is worse, not a number is worst.
    describe: row -> what is wrong, in a few words.

  Returns:
    At most `MOST_MISTAKES`, the worst first; of equal ones the first.
  """
  error = np.asarray(error, np.float64)
  error = np.where(np.isnan(error), np.inf, error)
  rows = np.argsort(-error, kind='stable')[:MOST_MISTAKES]
  return [
    Mistake(int(index[row]), float(error[row]), describe(row)) for row in rows if error[row] > 0
  ]


def worst_matrices(index: np.ndarray, confusion: np.ndarray) -> list[Mistake]:
  """The examples of whose parts, such as points, the largest share has a wrong class.

  Args:
    index: as for `worst`.
    confusion: of each example, `[n, true, predicted]`.
  """
  right, count = np.trace(confusion, axis1=1, axis2=2), confusion.sum(axis=(1, 2))
  wrong = np.where(count > 0, 1 - right / np.maximum(count, 1), 0)
  return worst(index, wrong, lambda row: f'{wrong[row]:.1%} wrong')


def mistakes_csv(mistakes: Sequence[Mistake], names: Sequence[str]) -> str:
  """A line per mistake, the worst first, with the names of the examples."""
  rows = ([name, f'{x.error:.6g}', x.text] for name, x in zip(names, mistakes, strict=True))
  return _csv([['example', 'error', 'text'], *rows])


def _csv(rows: Sequence[Sequence[object]]) -> str:
  file = io.StringIO()
  csv.writer(file, lineterminator='\n').writerows(rows)
  return file.getvalue()
