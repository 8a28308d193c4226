"""Audio classification with several labels: binary cross entropy, mean average precision."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from crossattn_jax.data.audio import batches as data
from crossattn_jax.data.audio import sources
from crossattn_jax.tasks import base, classifier, losses, multi_label, review
from crossattn_jax.tasks.audio_classification import predictions


def default_config() -> ml_collections.ConfigDict:
  """The `task` and `dataset` sections of an audio experiment."""
  config = ml_collections.ConfigDict()
  config.task = ml_collections.ConfigDict({'name': 'audio_classification'})
  config.dataset = data.default_config()
  return config


def complete_config(config: ml_collections.ConfigDict) -> list[str]:
  """Takes classes and splits from the data set; see `tasks.complete_config`."""
  notes = base.complete_splits(config, sources.complete_splits)
  return notes + classifier.complete_classes(config, data.Examples)


class AudioClassification(classifier.Classifier):
  """Says which of a set of classes are heard in a clip."""

  multi_label = True
  Examples = data.Examples
  Predictor = predictions.Predictor

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__(config)
    self.image_shape = (config.dataset.num_mel_bins, config.dataset.num_frames, 1)

  def describe_preprocessing(self) -> dict[str, Any]:
    """What makes an image of a file."""
    return data.describe_preprocessing(self.config.dataset)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Spectrograms `[batch, mel bins, frames, 1]` and labels `[batch, classes]` in [0, 1]."""
    return {
      'image': jax.ShapeDtypeStruct((batch_size, *self.image_shape), jnp.float32),
      'label': multi_label.label_spec(batch_size, self.model.num_classes),
    }

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """Mean binary cross entropy over batch and classes."""
    (logits, _), updated = self.forward(variables, batch, jax.random.split(rng), train)
    loss = jnp.mean(losses.multi_label_cross_entropy(logits, batch['label']))
    return loss, ({}, updated)

  def evaluate(self, variables: base.Variables, batch: base.Batch) -> base.Evaluation:
    """The summed loss of a batch, and each clip's logits and labels."""
    logits, _ = self.model.apply(variables, batch['image'])
    return multi_label.evaluate(logits, batch)

  def review(
    self, evaluation: base.Evaluation, examples: Mapping[str, np.ndarray]
  ) -> review.Review:
    """See `multi_label.review_of`."""
    return multi_label.review_of(examples, self.all_class_names)

  @property
  def metric_modes(self) -> dict[str, str]:
    """Precision is to be high, the loss low."""
    return multi_label.METRIC_MODES

  @property
  def metric_words(self) -> dict[str, str]:
    """See `multi_label`."""
    return multi_label.METRIC_WORDS

  def metrics(self, evaluation: base.Evaluation) -> dict[str, float]:
    """Mean average precision over the classes that occur, mean loss, the number of clips."""
    return multi_label.metrics(evaluation)
