"""What a classifier makes of image files and of evaluation images."""

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.data.classification import batches as data
from crossattn_jax.tasks import attention_maps, base, classifier
from crossattn_jax.tasks.classification import pictures

_SAMPLES = 16


class Predictor(classifier.Predictor):
  """Draws images with their best classes and where the model looks."""

  score_name = 'probability'

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Class probabilities `[batch, classes]` and attention maps `[batch, rows, columns]`."""
    logits, features = self.task.model.apply(variables, batch['image'])
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    outputs = {'probabilities': jax.nn.softmax(wide, axis=-1)}
    return outputs | attention_maps.outputs(self.task.model, features)

  def predict_file(self, path: epath.Path, name: str, output: epath.Path) -> base.Record:
    """The best classes of an image, and a picture of it with them and attention."""
    image, picture = data.read_image(path, self.task.config.dataset)
    outputs = self.outputs({'image': image[None]})
    classes = self.best_classes(outputs['probabilities'][0])
    shown = output / f'{name}.png'
    pictures.classified_image(
      shown,
      picture,
      [(entry['name'], entry['probability']) for entry in classes],
      attention_maps.of_example(outputs, 0),
    )
    return {'input': str(path), 'classes': classes, 'picture': str(shown)}

  def write_samples(self, path: epath.Path) -> None:
    """Writes a sheet of evaluation images with predicted and true classes and attention."""
    batch = next(iter(self.task.eval_data(_SAMPLES, 0, 1)))
    outputs = self.outputs({'image': batch['image']})
    shown = data.denormalize(batch['image'], self.task.config.dataset)
    probabilities = outputs['probabilities']
    samples = [
      pictures.Sample(
        image=shown[row],
        predicted=self.task.class_name(int(np.argmax(probabilities[row]))),
        true=self.task.class_name(int(batch['label'][row])),
        probability=float(np.max(probabilities[row])),
        attention=attention_maps.of_example(outputs, row),
      )
      for row in np.flatnonzero(batch['mask'])
    ]
    pictures.sheet(path, samples)
