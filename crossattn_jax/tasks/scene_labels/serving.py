"""What scenes hold, without this library."""

from typing import Any

import jax

from crossattn_jax.data import decoding, levels
from crossattn_jax.data.scene_points import batches as data
from crossattn_jax.data.scene_points import point_files
from crossattn_jax.geometry import points
from crossattn_jax.tasks import base, point_pictures

# What only training and evaluation need.
_LEFT_OUT = ('index', 'tags')


class Serving(base.Serving):
  """Tables of the voxels and supervoxels of scenes and photographs in, classes out."""

  modules = (decoding, point_files, points)

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Of the largest scenes; of models that see one of both, points or photographs."""
    specs = self.task.batch_spec(1)
    if not self.task.sees_points:
      specs = {'images': specs['images']}
    elif not hasattr(self.task.model, 'num_views'):
      specs.pop('images', None)
    return {
      name: jax.ShapeDtypeStruct(spec.shape[1:], spec.dtype)
      for name, spec in specs.items()
      if name not in _LEFT_OUT
    }

  @property
  def description(self) -> dict[str, Any]:
    """How files are looked at, and the classes with their colours."""
    config, names = self.task.config.dataset, self.task.class_names
    return {
      'preprocessing': {
        'num_levels': config.num_levels,
        'transform': data.eval_transform(config, 0, 0).tolist(),
        'photographs': levels.describe(config),
      },
      'threshold': self.task.config.task.pseudo_labels.threshold,
      'classes': list(names),
      'palette': point_pictures.palette(len(names)).tolist(),
    }

  def run(self, variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
    """See `SceneLabels.say`."""
    outputs, _ = self.task.model.apply(variables, *self.task.model_inputs(inputs))
    return self.task.say(outputs)
