"""Image fusion without this library."""

from typing import Any

import jax
import jax.numpy as jnp

from crossattn_jax.data import decoding
from crossattn_jax.data.image_fusion import batches as data
from crossattn_jax.tasks import base


class Serving(base.Serving):
  """Luma of pairs of any size up to `serving_size` in, fused luma out."""

  modules = (decoding,)

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Both images in arrays of the largest size, and their own size."""
    image = jax.ShapeDtypeStruct((*self.task.config.task.serving_size, 1), jnp.float32)
    return {'visible': image, 'infrared': image, 'size': jax.ShapeDtypeStruct((2,), jnp.int32)}

  @property
  def description(self) -> dict[str, Any]:
    """How to make luma, and how levels are rounded."""
    return {
      'preprocessing': data.describe_preprocessing(self.task.config.dataset),
      'rounding': self.task.config.task.rounding,
    }

  def run(self, variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
    """The fused images."""
    images = self.task.model_inputs(inputs)
    fused, _ = self.task.model.apply(variables, *images, size=inputs['size'])
    return {'fused': fused}
