"""What scenes hold, without this library."""

from typing import Any

import jax

from crossattn_jax.tasks import base


class Serving(base.Serving):
  """Voxels with their neighbours and supervoxels, and photographs, in; classes out."""

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """A row of a batch."""
    return {
      name: jax.ShapeDtypeStruct(spec.shape[1:], spec.dtype)
      for name, spec in self.task.batch_spec(1).items()
      if name not in ('index', 'tags')
    }

  @property
  def description(self) -> dict[str, Any]:
    """The classes."""
    return {'classes': list(self.task.class_names)}

  def run(self, variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
    """See `SceneLabels.say`."""
    outputs, _ = self.task.model.apply(variables, *self.task.model_inputs(inputs))
    return self.task.say(outputs)
