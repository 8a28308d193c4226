"""Segmentation of point clouds without this library."""

from typing import Any

import jax

from crossattn_jax.data.scene_points import batches as data
from crossattn_jax.data.scene_points import point_files
from crossattn_jax.geometry import points
from crossattn_jax.tasks import base, point_pictures

# What only training and evaluation need.
_LEFT_OUT = ('index', 'labels', 'vote')


class Serving(base.Serving):
  """Tables of the voxels of scenes in, scores of their classes out."""

  modules = (point_files, points)

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Of the largest scenes: colours around each voxel, and how voxels hang together."""
    return {
      name: jax.ShapeDtypeStruct(spec.shape[1:], spec.dtype)
      for name, spec in self.task.batch_spec(1).items()
      if name not in _LEFT_OUT
    }

  @property
  def description(self) -> dict[str, Any]:
    """How files are looked at, and the classes with their labels and colours."""
    config, names = self.task.config.dataset, self.task.class_names
    looks = [data.eval_transform(config, 0, vote) for vote in range(config.evaluation.votes)]
    return {
      'preprocessing': {
        'num_levels': config.num_levels,
        'looks': [transform.tolist() for transform in looks],
      },
      'classes': list(names),
      'labels': list(config.class_values or range(len(names))),
      'palette': point_pictures.palette(len(names))[:-1].tolist(),
    }

  def run(self, variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
    """The scores of each voxel; meaningless in padding."""
    return {'logits': self.task.logits(variables, inputs)}
