"""Examples with any number of classes: binary cross entropy, mean average precision."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.metrics import average_precision
from crossattn_jax.tasks import base, losses

# Precision is to be high, the loss low.
METRIC_MODES = {'mean_average_precision': 'max', 'loss': 'min'}


def label_spec(batch_size: int, num_classes: int) -> jax.ShapeDtypeStruct:
  """Labels of a batch, `[batch, classes]` in [0, 1]."""
  return jax.ShapeDtypeStruct((batch_size, num_classes), jnp.float32)


def evaluate(logits: jax.Array, batch: base.Batch) -> base.Evaluation:
  """The summed loss of a batch, and the logits and labels of each example.

  Args:
    logits: `[batch, classes]`.
    batch: with `label`, as `label_spec`, and `mask` `[batch]`.
  """
  loss = losses.multi_label_cross_entropy(logits, batch['label'])
  return base.Evaluation(
    sums={
      'count': jnp.sum(batch['mask'], dtype=jnp.int32),
      'loss': jnp.sum(jnp.where(batch['mask'], loss, 0.0)),
    },
    examples={'logits': logits, 'label': batch['label']},
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
