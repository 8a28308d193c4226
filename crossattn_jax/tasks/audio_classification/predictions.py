"""What a classifier of sounds makes of .wav files and of evaluation clips."""

from collections.abc import Mapping, Sequence

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.data.audio import batches as data
from crossattn_jax.data.audio import spectrogram
from crossattn_jax.tasks import attention_maps, base, classifier, predictor
from crossattn_jax.tasks.audio_classification import pictures


class Predictor(classifier.Predictor):
  """Draws spectrograms with their best classes and where the model looks."""

  extensions = ('.wav',)
  expected = 'a .wav file, or a folder with .wav files'
  fields = (predictor.Field('sound', 'sound', 'Sound (.wav)'),)
  score_name = 'score'
  draw = staticmethod(pictures.audio_clip)
  draw_sheet = staticmethod(pictures.sheet)

  def load(self, source: predictor.Input) -> predictor.Loaded:
    """A spectrogram."""
    image = data.read_audio(*source.paths, self.task.config.dataset)
    return predictor.Loaded({'image': image}, image)

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Scores of each class, `[batch, classes]` in [0, 1], and attention maps."""
    logits, features = self.task.model.apply(variables, batch['image'])
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    outputs = {'scores': jax.nn.sigmoid(wide)}
    return outputs | attention_maps.outputs(self.task.model, features, batch.get('place'))

  def record(
    self, shown: np.ndarray, result: predictor.Row, files: Mapping[str, epath.Path]
  ) -> predictor.Record:
    """The best classes."""
    return {'classes': self.best_classes(result['scores'])}

  def sample(
    self, shown: np.ndarray, result: predictor.Row, true: Sequence[str] | None = None
  ) -> pictures.Clip:
    """A clip with its best classes and attention."""
    classes = self.best_classes(result['scores'])
    config = self.task.config.dataset
    return pictures.Clip(
      spectrogram=spectrogram.decibels(shown[..., 0], config.mean, config.std),
      seconds=spectrogram.num_samples(shown.shape[1]) / spectrogram.SAMPLE_RATE,
      scores=[(entry['name'], entry['score']) for entry in classes],
      true=true,
      attention=attention_maps.of_example(result),
    )

  def evaluation_sample(self, example: predictor.Row, result: predictor.Row) -> pictures.Clip:
    """The same, and the true classes."""
    true = [self.task.class_name(int(index)) for index in np.flatnonzero(example['label'])]
    return self.sample(example['image'], result, true)
