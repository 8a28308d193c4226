"""Segmentation without this library."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.data import decoding
from crossattn_jax.data.segmentation import batches as data
from crossattn_jax.tasks import base


class Serving(base.Serving):
  """Normalised images of the training crops' size in, logits of every pixel out."""

  modules = (decoding,)
  onnx = True

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An image."""
    return {'image': jax.ShapeDtypeStruct((*self.task.crop, 3), jnp.float32)}

  @property
  def description(self) -> dict[str, Any]:
    """How to make an image, and the classes with their labels and colours."""
    taxonomy = self.task.taxonomy
    classes = np.arange(taxonomy.num_classes, dtype=np.uint8)
    return {
      'preprocessing': data.describe_preprocessing(self.task.config.dataset),
      'classes': list(taxonomy.class_names),
      'labels': taxonomy.to_labels(classes).tolist(),
      'palette': taxonomy.palette.tolist(),
    }

  def run(self, variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
    """The logits at the size of the images."""
    logits, _ = self.task.model.apply(variables, inputs['image'])
    return {'logits': self.task.resized(logits, self.task.crop)}
