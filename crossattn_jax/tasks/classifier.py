"""What tasks have in common that assign classes to whole images, or to what looks like one."""

import abc
import functools
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from crossattn_jax.data import pipeline
from crossattn_jax.data.classification import imagenet
from crossattn_jax.tasks import base, predictor

# Classes in a picture and in a record.
_SHOWN = 5


def complete_classes(
  config: ml_collections.ConfigDict, examples: type[pipeline.Examples]
) -> list[str]:
  """Sets names and number of the classes where the config leaves them to the data set.

  Returns:
    What was chosen, for the person at the terminal.

  Raises:
    ValueError: the data set cannot be opened, and the number is not known without it.
  """
  dataset, model = config.dataset, config.model
  if not dataset.class_names:
    try:
      dataset.class_names = examples.open_source(dataset, dataset.train_split).class_names
    except (ValueError, FileNotFoundError):
      # An evaluation may have no training split, and counts without names.
      if model.get('num_classes') is None:
        raise
      return []
  return base.complete_num_classes(config)


class Predictor(predictor.FilePredictor):
  """Names the best classes.

  Attributes:
    score_name: what the score of a class is called in records.
  """

  score_name: str
  batch_size = 32

  def best_classes(self, scores: np.ndarray) -> list[dict[str, Any]]:
    """The classes with the largest of the scores `[classes]`, best first."""
    return [
      {
        'index': int(index),
        'name': self.task.class_name(int(index)),
        self.score_name: float(scores[index]),
      }
      for index in np.argsort(-scores, kind='stable')[:_SHOWN]
    ]


class Serving(base.Serving):
  """Normalised images in, logits out."""

  onnx = True

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An image."""
    return {'image': jax.ShapeDtypeStruct(self.task.image_shape, jnp.float32)}

  @property
  def description(self) -> dict[str, Any]:
    """How to make an image, the names of the classes, and what turns logits into scores."""
    return {
      'preprocessing': self.task.describe_preprocessing(),
      'classes': self.task.all_class_names,
      'scores': 'sigmoid' if self.task.multi_label else 'softmax',
    }

  def run(self, variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
    """The logits of each class."""
    logits, _ = self.task.model.apply(variables, inputs['image'])
    return {'logits': logits}


class Classifier(base.Task):
  """Says which of a fixed set of classes an image has.

  Attributes:
    image_shape: (height, width, channels) of what the model takes.
    multi_label: whether an image has any number of classes, rather than one.
  """

  multi_label: bool = False
  Serving = Serving
  image_shape: tuple[int, int, int]

  @abc.abstractmethod
  def describe_preprocessing(self) -> dict[str, Any]:
    """What makes an image of a file, as JSON can hold it."""

  @functools.cached_property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes; none where neither the config nor the data set at hand says them."""
    dataset = self.config.dataset
    if dataset.class_names or dataset.train_split is None:
      return tuple(dataset.class_names)
    if imagenet.has_its_classes(dataset.name, self.model.num_classes):
      return tuple(imagenet.names())
    try:
      return self.Examples.open_source(dataset, dataset.train_split).class_names
    except (ValueError, FileNotFoundError) as error:
      logging.warning('classes are shown by number: %s', error)
      return ()

  def class_name(self, index: int) -> str:
    """The name of a class, in words where that is a WordNet id; its number where it has none."""
    name = self.class_names[index] if index < len(self.class_names) else str(index)
    return imagenet.names().get(name, name)

  @property
  def all_class_names(self) -> list[str]:
    """The name of each class of the model."""
    return [self.class_name(index) for index in range(self.model.num_classes)]

  def check_data(self) -> None:
    """Refuses another number of classes than the data set has."""
    if self.class_names:
      base.check_num_classes(self.config, self.model.num_classes, len(self.class_names))
