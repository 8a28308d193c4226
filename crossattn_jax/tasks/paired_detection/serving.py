"""A detector of pairs without this library."""

from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.data import decoding
from crossattn_jax.data.paired_detection import batches as data
from crossattn_jax.data.paired_detection import placement
from crossattn_jax.tasks import base
from crossattn_jax.tasks.detection import overlay


class Serving(base.Serving):
  """Pairs in the middle of arrays of fixed size in, their objects out."""

  modules = (decoding, overlay, placement)

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Both images."""
    image = jax.ShapeDtypeStruct((*self.task.canvas, 3), jnp.float32)
    return dict.fromkeys(data.MODALITIES, image)

  @property
  def description(self) -> dict[str, Any]:
    """How to make images, and the classes."""
    return {
      'preprocessing': data.describe_preprocessing(self.task.config.dataset),
      'classes': list(self.task.class_names),
      'category_ids': list(self.task.category_ids),
      'shown_score': self.task.config.task.shown_score,
    }

  def run(self, variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
    """`boxes` in pixels of the arrays, `scores` and `labels`; see Detections."""
    found, _, _ = self.task.find(variables, inputs)
    return {'boxes': found.boxes, 'scores': found.scores, 'labels': found.labels}
