"""What a classifier of sounds makes of .wav files and of evaluation clips."""

from collections.abc import Mapping

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.data.audio import batches as data
from crossattn_jax.data.audio import spectrogram
from crossattn_jax.tasks import attention_maps, base, classifier
from crossattn_jax.tasks.audio_classification import pictures

_SAMPLES = 16


class Predictor(classifier.Predictor):
  """Draws spectrograms with their best classes and where the model looks."""

  score_name = 'score'

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Scores of each class, `[batch, classes]` in [0, 1], and attention maps."""
    logits, features = self.task.model.apply(variables, batch['image'])
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    outputs = {'scores': jax.nn.sigmoid(wide)}
    return outputs | attention_maps.outputs(self.task.model, features)

  def predict_file(self, path: epath.Path, name: str, output: epath.Path) -> base.Record:
    """The best classes of a clip, and a picture: spectrogram, classes, attention."""
    image = data.read_audio(path, self.task.config.dataset)
    outputs = self.outputs({'image': image[None]})
    shown = output / f'{name}.png'
    pictures.audio_clip(shown, self._clip(image, outputs, 0, None))
    classes = self.best_classes(outputs['scores'][0])
    return {'input': str(path), 'classes': classes, 'picture': str(shown)}

  def write_samples(self, path: epath.Path) -> None:
    """Writes a sheet of evaluation clips with predicted and true classes."""
    batch = next(iter(self.task.eval_data(_SAMPLES, 0, 1)))
    outputs = self.outputs({'image': batch['image']})
    clips = [
      self._clip(batch['image'][row], outputs, row, batch['label'][row])
      for row in np.flatnonzero(batch['mask'])
    ]
    pictures.sheet(path, clips)

  def _clip(
    self, image: np.ndarray, outputs: Mapping[str, np.ndarray], row: int, label: np.ndarray | None
  ) -> pictures.Clip:
    classes = self.best_classes(outputs['scores'][row])
    true = None
    if label is not None:
      true = [self.task.class_name(int(index)) for index in np.flatnonzero(label)]
    return pictures.Clip(
      spectrogram=image[..., 0],
      seconds=spectrogram.num_samples(image.shape[1]) / spectrogram.SAMPLE_RATE,
      scores=[(entry['name'], entry['score']) for entry in classes],
      true=true,
      attention=attention_maps.of_example(outputs, row),
    )
