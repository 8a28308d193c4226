"""Examples with any number of classes: binary cross entropy, mean average precision."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.metrics import average_precision
from crossattn_jax.tasks import base, losses, review

# Precision is to be high, the loss low.
METRIC_MODES = {'mean_average_precision': 'max', 'loss': 'min'}
METRIC_WORDS = {
  'mean_average_precision': 'how well scores put what has a class first, mean over classes; 1 is '
  'best',
  'loss': 'binary cross entropy, mean over examples and classes',
}


def label_spec(batch_size: int, num_classes: int) -> jax.ShapeDtypeStruct:
  """Labels of a batch, `[batch, classes]` in [0, 1]."""
  return jax.ShapeDtypeStruct((batch_size, num_classes), jnp.float32)


def evaluate(logits: jax.Array, batch: base.Batch) -> base.Evaluation:
  """The summed loss of a batch, and the logits and labels of each example.

  Args:
    logits: `[batch, classes]`.
    batch: with `label`, as `label_spec`, `index` and `mask` `[batch]`.
  """
  loss = losses.multi_label_cross_entropy(logits, batch['label'])
  return base.Evaluation(
    sums={
      'count': jnp.sum(batch['mask'], dtype=jnp.int32),
      'loss': jnp.sum(jnp.where(batch['mask'], loss, 0.0)),
    },
    examples={name: batch[name] for name in ('index', 'label')} | {'logits': logits},
  )


def metrics(evaluation: base.Evaluation) -> dict[str, Any]:
  """Mean average precision over the classes that occur, mean loss, the number of examples."""
  count = int(evaluation.sums['count'])
  examples = evaluation.examples
  return {
    'mean_average_precision': average_precision.mean_average_precision(
      np.asarray(examples['logits']), np.asarray(examples['label'])
    ),
    'loss': evaluation.sums['loss'] / count,
    'examples': count,
  }


def review_of(examples: Mapping[str, np.ndarray], class_names: Sequence[str]) -> review.Review:
  """Which classes are found, which are found instead, and the examples with the largest loss.

  Args:
    examples: 'index' `[n]`, and 'logits' and 'label' `[n, classes]`.
    class_names: in the order of the labels.
  """
  logits, label = np.asarray(examples['logits'], np.float64), examples['label']
  loss = np.mean(np.logaddexp(0, logits) - label * logits, axis=1)
  few = len(class_names) <= review.MOST_CLASSES
  return review.Review(
    confusion(logits > 0, label > 0.5, class_names) if few else None,
    review.worst(examples['index'], loss, lambda row: f'loss {loss[row]:.3g}'),
  )


def confusion(found: np.ndarray, true: np.ndarray, class_names: Sequence[str]) -> review.Confusion:
  """How often each class is found where it is true, and how often others are found there falsely.

  Args:
    found: whether an example was said to have a class, bool `[n, classes]`.
    true: whether it has it.
    class_names: in the order of the labels.
  """
  own = true.astype(np.int64)
  counts = own.T @ (found & ~true).astype(np.int64)
  counts[np.diag_indices_from(counts)] = (true & found).sum(axis=0)
  return review.Confusion(counts, class_names, 'labels', totals=own.sum(axis=0))
