"""What a classifier makes of image files and of evaluation images."""

from collections.abc import Mapping, Sequence

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from crossattn_jax.data.classification import batches as data
from crossattn_jax.tasks import attention_maps, base, classifier, predictor
from crossattn_jax.tasks.classification import pictures


class Predictor(classifier.Predictor):
  """Draws images with their best classes and where the model looks."""

  draw = staticmethod(pictures.classified_image)
  draw_sheet = staticmethod(pictures.sheet)

  @property
  def score_name(self) -> str:
    """A probability among classes that exclude each other, else the score of each class."""
    return 'score' if self.task.multi_label else 'probability'

  def load(self, source: predictor.Input) -> predictor.Loaded:
    """An image, and the crop that it was made of."""
    image, crop = data.read_image(*source.paths, self.task.config.dataset)
    return predictor.Loaded({'image': image}, crop)

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Scores of the classes `[batch, classes]` and attention maps `[batch, rows, columns]`."""
    logits, features = self.task.model.apply(variables, batch['image'])
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    scores = jax.nn.sigmoid(wide) if self.task.multi_label else jax.nn.softmax(wide, axis=-1)
    outputs = {'probabilities': scores}
    return outputs | attention_maps.outputs(self.task.model, features, batch.get('place'))

  def record(
    self, shown: Image.Image, result: predictor.Row, files: Mapping[str, epath.Path]
  ) -> predictor.Record:
    """The best classes."""
    return {'classes': self.best_classes(result['probabilities'])}

  def sample(
    self, shown: Image.Image, result: predictor.Row, true: Sequence[str] | None = None
  ) -> pictures.Sample:
    """An image with its best classes and attention."""
    classes = self.best_classes(result['probabilities'])
    return pictures.Sample(
      image=shown,
      classes=[(entry['name'], entry[self.score_name]) for entry in classes],
      true=true,
      attention=attention_maps.of_example(result),
    )

  def evaluation_sample(self, example: predictor.Row, result: predictor.Row) -> pictures.Sample:
    """The same, and the true class, or classes."""
    shown = data.denormalize(example['image'], self.task.config.dataset)
    label = example['label']
    indices = np.flatnonzero(label) if self.task.multi_label else [label]
    return self.sample(shown, result, [self.task.class_name(int(index)) for index in indices])
