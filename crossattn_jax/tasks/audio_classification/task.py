"""Audio classification with several labels: binary cross entropy, mean average precision."""

from collections.abc import Sequence
import functools
import json
import pathlib
from typing import Any

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from crossattn_jax.data.audio import batches as data
from crossattn_jax.data.audio import spectrogram
from crossattn_jax.metrics import average_precision
from crossattn_jax.tasks import base, losses, pictures

_SHOWN = 5  # classes in a picture and in a record


def default_config() -> ml_collections.ConfigDict:
  """The `task` and `dataset` sections of an audio experiment."""
  config = ml_collections.ConfigDict()
  config.task = ml_collections.ConfigDict({'name': 'audio_classification'})
  config.dataset = data.default_config()
  return config


def create_task(config: ml_collections.ConfigDict) -> 'AudioClassification':
  """Builds the task; see `tasks.create_task`."""
  return AudioClassification(config)


class AudioClassification(base.Task):
  """Says which of a set of classes are heard in a clip."""

  Examples = data.Examples

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__(config)
    self._image_shape = (config.dataset.num_mel_bins, config.dataset.num_frames, 1)

  @functools.cached_property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes; their numbers where the data set is not at hand."""
    dataset = self.config.dataset
    try:
      return self.Examples.open_source(dataset, dataset.train_split).class_names
    except (ValueError, FileNotFoundError) as error:
      logging.warning('classes are shown by number: %s', error)
      return tuple(str(index) for index in range(self.model.num_classes))

  def check_data(self) -> None:
    """Refuses another number of classes than the data set has."""
    if len(self.class_names) != self.model.num_classes:
      raise ValueError(
        f'config.model.num_classes is {self.model.num_classes}, but dataset '
        f'{self.config.dataset.name!r} has {len(self.class_names)} classes; set '
        f'config.model.num_classes={len(self.class_names)}'
      )

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Spectrograms `[batch, mel bins, frames, 1]` and labels `[batch, classes]` in [0, 1]."""
    shape = (batch_size, self.model.num_classes)
    return {
      'image': jax.ShapeDtypeStruct((batch_size, *self._image_shape), jnp.float32),
      'label': jax.ShapeDtypeStruct(shape, jnp.float32),
    }

  def init(self, rng: jax.Array) -> base.Variables:
    """Initial variables of the model."""
    return self.model.init({'params': rng}, jnp.zeros((1, *self._image_shape)))

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """Mean binary cross entropy over batch and classes."""
    rng_dropout, rng_drop_path = jax.random.split(rng)
    state = [name for name in variables if name != 'params']
    (logits, _), updated = self.model.apply(
      variables,
      batch['image'],
      train=train,
      rngs={'dropout': rng_dropout, 'drop_path': rng_drop_path},
      mutable=state if train else [],
    )
    loss = jnp.mean(losses.multi_label_cross_entropy(logits, batch['label']))
    return loss, ({}, updated)

  def evaluate(self, variables: base.Variables, batch: base.Batch) -> base.Evaluation:
    """The summed loss of a batch, and each clip's logits and labels."""
    logits, _ = self.model.apply(variables, batch['image'])
    loss = losses.multi_label_cross_entropy(logits, batch['label'])
    return base.Evaluation(
      sums={
        'count': jnp.sum(batch['mask'], dtype=jnp.int32),
        'loss': jnp.sum(jnp.where(batch['mask'], loss, 0.0)),
      },
      examples={'logits': logits, 'label': batch['label']},
    )

  def metrics(self, evaluation: base.Evaluation) -> dict[str, float]:
    """Mean average precision over the classes that occur, mean loss, the number of clips."""
    count = int(evaluation.sums['count'])
    examples = evaluation.examples
    return {
      'mean_average_precision': average_precision.mean_average_precision(
        np.asarray(examples['logits']), np.asarray(examples['label'])
      ),
      'loss': evaluation.sums['loss'] / count,
      'examples': count,
    }

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Scores of each class, `[batch, classes]` in [0, 1], and attention maps."""
    logits, features = self.model.apply(variables, batch['image'])
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    outputs = {'scores': jax.nn.sigmoid(wide)}
    return outputs | pictures.attention_outputs(self.model, features)

  def write_predictions(
    self, variables: base.Variables, inputs: Sequence[epath.Path], output: epath.Path
  ) -> list[dict[str, Any]]:
    """Writes `predictions.json` and a picture per .wav file: spectrogram, classes, attention."""
    predict = jax.jit(self.predict)
    records, used = [], set()
    for path in inputs:
      image = data.read_audio(path, self.config.dataset)
      outputs = jax.device_get(predict(variables, {'image': image[None]}))
      clip = self._clip(image, outputs, 0, None)
      shown = output / f'{pictures.unused_name(path.stem, used)}.png'
      pictures.audio_clip(shown, clip)
      best = np.argsort(-outputs['scores'][0], kind='stable')[:_SHOWN]
      records.append(
        {
          'input': str(path),
          'classes': [
            {
              'index': int(index),
              'name': self._class_name(int(index)),
              'score': float(outputs['scores'][0, index]),
            }
            for index in best
          ],
          'picture': str(shown),
        }
      )
    (output / 'predictions.json').write_text(json.dumps(records, indent=2) + '\n')
    return records

  def write_samples(self, variables: base.Variables, path: epath.Path) -> None:
    """Writes a sheet of evaluation clips with predicted and true classes."""
    batch = next(iter(self.eval_data(16, 0, 1)))
    outputs = jax.device_get(jax.jit(self.predict)(variables, {'image': batch['image']}))
    pictures.audio_sheet(
      path,
      [
        self._clip(batch['image'][row], outputs, row, batch['label'][row])
        for row in range(len(batch['mask']))
        if batch['mask'][row]
      ],
    )

  def serving(self) -> base.Serving:
    """Normalised spectrograms in, logits out."""

    def run(variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
      logits, _ = self.model.apply(variables, inputs['image'])
      return {'logits': logits}

    return base.Serving(
      run=run,
      inputs={'image': jax.ShapeDtypeStruct(self._image_shape, jnp.float32)},
      description={
        'preprocessing': data.describe_preprocessing(self.config.dataset),
        'classes': [self._class_name(index) for index in range(self.model.num_classes)],
      },
      script=pathlib.Path(__file__).with_name('serving_script.py'),
    )

  def _clip(
    self, image: np.ndarray, outputs: dict[str, np.ndarray], row: int, label: np.ndarray | None
  ) -> pictures.Clip:
    scores = outputs['scores'][row]
    best = np.argsort(-scores, kind='stable')[:_SHOWN]
    true = None if label is None else [self._class_name(int(i)) for i in np.flatnonzero(label)]
    return pictures.Clip(
      spectrogram=image[..., 0],
      seconds=spectrogram.num_samples(image.shape[1]) / spectrogram.SAMPLE_RATE,
      scores=[(self._class_name(int(index)), float(scores[index])) for index in best],
      true=true,
      attention=pictures.attention_of(outputs, row),
    )

  def _class_name(self, index: int) -> str:
    return self.class_names[index] if index < len(self.class_names) else str(index)
