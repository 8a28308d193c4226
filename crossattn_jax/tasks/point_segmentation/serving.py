"""Segmentation of point clouds without this library."""

from typing import Any

import jax

from crossattn_jax.geometry import points
from crossattn_jax.tasks import base


class Serving(base.Serving):
  """The tables of the voxels of scenes in, scores of their classes out."""

  modules = (points,)

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Colours around each voxel, and the tables of all levels."""
    specs = self.task.batch_spec(1)
    left_out = ('index', 'labels', 'vote')
    return {
      name: jax.ShapeDtypeStruct(spec.shape[1:], spec.dtype)
      for name, spec in specs.items()
      if name not in left_out
    }

  @property
  def description(self) -> dict[str, Any]:
    """How to make voxels of points, and the classes."""
    config = self.task.config.dataset
    return {
      'preprocessing': {'voxel_size': config.voxel_size, 'num_levels': config.num_levels},
      'classes': list(self.task.class_names),
    }

  def run(self, variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
    """The scores of each voxel."""
    return {'logits': self.task.logits(variables, inputs)}
