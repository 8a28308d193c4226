"""Metrics of semantic segmentation, from one matrix of counts."""

from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

# What is measured of classes of pixels or points, in plain words; `*` is the name of a class.
WORDS = {
  'mean_iou': 'what is in both, truth and prediction, over what is in either; mean over classes',
  'mean_accuracy': 'share of what is of a class that is found, mean over classes',
  'iou/*': 'IoU of {} alone',
}
# A table of more classes is no help.
_MOST_ROWS = 40


def table(
  values: Mapping[str, float], class_names: Sequence[str], totals: Mapping[str, str]
) -> str:
  """The IoU of each class in a line, a dash where it does not occur; then means over all.

  Args:
    values: metrics, those of classes as 'iou/CLASS'.
    class_names: of all classes; with more than 40 of them only the means are shown.
    totals: what the means are called in the table, and in `values`.

  Returns:
    Lines of text.
  """
  rows = {name: values.get(f'iou/{name}') for name in class_names}
  rows = rows if len(rows) <= _MOST_ROWS else {}
  rows |= {title: values[name] for title, name in totals.items()}
  width = max(map(len, rows))
  lines = [f'{name:<{width}}  {"-" if x is None else f"{x:.3f}":>5}' for name, x in rows.items()]
  return '\n'.join([f'{"class":<{width}}    IoU', *lines])


def confusion_matrix(
  labels: jax.Array,
  predictions: jax.Array,
  num_classes: int,
  *,
  ignore_label: int = 255,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Counts pixels by their true and their predicted class; what is no class counts as none.

  Args:
    labels: integer classes `[...]`.
    predictions: the same shape.
    num_classes: how many there are.
    ignore_label: label of pixels that do not count.
    mask: `[...]`, False where pixels do not count either.

  Returns:
    int32 `[true class, predicted class]`; matrices of several batches can be added.
  """
  counts = labels != ignore_label
  for values in (labels, predictions):
    counts &= (values >= 0) & (values < num_classes)
  if mask is not None:
    counts &= mask
  cells = labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32)
  # One cell more for those that do not count.
  cells = jnp.where(counts, cells, num_classes**2).reshape(-1)
  total = jnp.bincount(cells, length=num_classes**2 + 1)[:-1]
  return total.reshape(num_classes, num_classes).astype(jnp.int32)


def host_confusion_matrix(
  labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> np.ndarray:
  """The same on the host, where every array has another shape: nothing is compiled for each.

  Args:
    labels: integer classes `[...]`; what is no class does not count.
    predictions: the same shape; likewise.
    num_classes: how many there are.

  Returns:
    int64 `[true class, predicted class]`.
  """
  labels, predictions = np.ravel(labels), np.ravel(predictions)
  counts = (np.minimum(labels, predictions) >= 0) & (np.maximum(labels, predictions) < num_classes)
  cells = labels[counts].astype(np.int64) * num_classes + predictions[counts]
  return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
  """Pixels of a class in both over those in either, per class; NaN where neither has any.

  Args:
    confusion: `[true class, predicted class]`.

  Examples:
    >>> labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    >>> confusion = host_confusion_matrix(labels, predictions, num_classes=2)
    >>> intersection_over_union(confusion).round(3).tolist()
    [0.5, 0.667]
  """
  confusion = np.asarray(confusion, np.float64)
  both = np.diag(confusion)
  either = confusion.sum(0) + confusion.sum(1) - both
  return np.divide(both, either, out=np.full(both.shape, np.nan), where=either > 0)


def named_classes(iou: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
  """The IoU of each class as 'iou/CLASS'; classes that do not occur have none."""
  named = zip(class_names, iou, strict=True)
  return {f'iou/{name}': float(value) for name, value in named if not np.isnan(value)}


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
  """Correct pixels over those of the class, per class; NaN where it has none."""
  confusion = np.asarray(confusion, np.float64)
  true = confusion.sum(1)
  return np.divide(np.diag(confusion), true, out=np.full(true.shape, np.nan), where=true > 0)


def pixel_accuracy(confusion: np.ndarray) -> float:
  """Correct pixels over all; NaN without any."""
  confusion = np.asarray(confusion, np.float64)
  total = confusion.sum()
  return float(np.trace(confusion) / total) if total else float('nan')


def mean_over_classes(values: np.ndarray, absent: Literal['zero', 'skip']) -> float:
  """Mean of a metric per class.

  Args:
    values: per class, NaN for absent ones.
    absent: 'zero' counts absent classes as 0, as CCNet's evaluation does; 'skip' leaves them out,
      as mmsegmentation does.

  Raises:
    ValueError: `absent` is neither.
  """
  if absent not in ('zero', 'skip'):
    raise ValueError(f"absent={absent!r} is neither 'zero' nor 'skip'")
  present = values[~np.isnan(values)]
  count = len(values) if absent == 'zero' else len(present)
  return float(present.sum() / count) if count else float('nan')
