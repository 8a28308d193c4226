"""Average precision of rankings, as AudioSet's papers report it.

Both functions see the scores of the whole evaluation set at once, on the host: average precision is
no mean over examples.
"""

from etils import epy
import numpy as np

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from sklearn import metrics


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Average precision of each class: the sum over thresholds of recall step times precision.

  Equal scores are one threshold. Only the order of the scores matters: logits give the same values
  as probabilities.

  Args:
    scores: `[examples, classes]`, finite.
    labels: the same shape, positive where not zero.

  Returns:
    `[classes]`, NaN where a class has no positive example.

  Raises:
    ValueError: a score is not finite.
  """
  positive = np.asarray(labels) > 0
  values = np.full(positive.shape[1], np.nan)
  for index in np.flatnonzero(positive.any(axis=0)):
    values[index] = metrics.average_precision_score(positive[:, index], scores[:, index])
  return values


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
  """The mean of `average_precision` over the classes with at least one positive example.

  Raises:
    ValueError: no class has one, or a score is not finite.

  Examples:
    >>> scores, labels = np.array([[0.9], [0.8], [0.1]]), np.array([[1], [0], [1]])
    >>> round(float(mean_average_precision(scores, labels)), 3)
    0.833
  """
  values = average_precision(scores, labels)
  if np.isnan(values).all():
    raise ValueError(f'none of the {values.size} classes has a positive example')
  return float(np.nanmean(values))
