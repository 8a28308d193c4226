"""A detector without this library."""

from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.data import decoding, resizing
from crossattn_jax.data.detection import batches as data
from crossattn_jax.geometry import mask_pasting
from crossattn_jax.tasks import base
from crossattn_jax.tasks.detection import overlay


class Serving(base.Serving):
  """Normalised images in a canvas of fixed size in, their objects out."""

  modules = (decoding, overlay, mask_pasting, resizing)

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An image at the upper left of its canvas, and (height, width) of it."""
    return {
      'image': jax.ShapeDtypeStruct((*self.task.canvas, 3), jnp.float32),
      'image_size': jax.ShapeDtypeStruct((2,), jnp.int32),
    }

  @property
  def description(self) -> dict[str, Any]:
    """How to make an image, and the classes."""
    return {
      'preprocessing': data.describe_preprocessing(self.task.config.dataset),
      'classes': list(self.task.class_names),
      'category_ids': list(self.task.category_ids),
      'shown_score': self.task.config.task.shown_score,
    }

  def run(self, variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
    """`boxes`, `scores`, `labels` and maybe `masks`, in pixels of the canvas; see Detections."""
    size = inputs['image_size']
    found, _ = self.task.detect(variables, {**inputs, 'original_size': size})
    return {name: x for name, x in vars(found).items() if x is not None}
