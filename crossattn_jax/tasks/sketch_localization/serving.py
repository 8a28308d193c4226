"""A sketch localizer without this library."""

from typing import Any

import jax

from crossattn_jax.data import decoding, resizing
from crossattn_jax.data.sketch_localization import batches as data
from crossattn_jax.data.sketch_localization import svg, thinning
from crossattn_jax.geometry import strokes
from crossattn_jax.tasks import base
from crossattn_jax.tasks.detection import overlay


class Serving(base.Serving):
  """Normalised images in a canvas of fixed size and sketches in, the objects these show out."""

  modules = (decoding, overlay, resizing, strokes, svg, thinning)

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An image at the upper left of its canvas, (height, width) of it, and its sketches."""
    names = ('image', 'image_size', 'sketches')
    specs = self.task.batch_spec(1)
    return {name: jax.ShapeDtypeStruct(specs[name].shape[1:], specs[name].dtype) for name in names}

  @property
  def description(self) -> dict[str, Any]:
    """How to make an image and sketches."""
    return {
      'preprocessing': data.describe_preprocessing(self.task.config.dataset),
      'shown_score': self.task.config.task.shown_score,
    }

  def run(self, variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
    """`boxes` in pixels of the canvas, `scores` and `labels`; see Detections."""
    found, _ = self.task.detect(variables, {**inputs, 'original_size': inputs['image_size']})
    return {'boxes': found.boxes, 'scores': found.scores, 'labels': found.labels}
