"""Finding in a photo what a sketch shows; AP of categories that were learnt, and of others."""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import ml_collections
from ml_collections import config_dict
import numpy as np

from crossattn_jax import config_errors, models
from crossattn_jax.data.sketch_localization import batches as data
from crossattn_jax.data.sketch_localization import sources
from crossattn_jax.heads.detection import types
from crossattn_jax.models.parts.types import Features
from crossattn_jax.models.sketch_localizer import model as sketch_localizer
from crossattn_jax.tasks import base
from crossattn_jax.tasks.detection import task as detection
from crossattn_jax.tasks.sketch_localization import (
  average_precision,
  losses,
  predictions,
  serving,
)

# Fields of a teacher that are the student's, too: what tokens there are.
_ALIKE = ('num_queries', 'channels', 'num_layers')


def default_config() -> ml_collections.ConfigDict:
  """The `task`, `dataset` and `predict` sections of an experiment."""
  config = ml_collections.ConfigDict()
  config.task = ml_collections.ConfigDict(
    {
      'name': 'sketch_localization',
      # Of the losses; see `losses.localizer_losses`. Those of heads that the model does not have
      # are none.
      'loss_weights': {
        # Of classes, the focal loss.
        'class_loss': 2.0,
        # Of the sides of boxes.
        'box_loss': 5.0,
        # Of the generalised IoU of boxes.
        'giou_loss': 2.0,
        # Of the predicted IoU, where the model has `iou_head`.
        'iou_loss': 2.0,
        # By how much less than `margin` found queries score above the others: an experiment of the
        # authors.
        'margin_loss': 0.0,
        # The same of all pairs of queries, by `pair_margin`; their code logs it times 3.
        'pair_margin_loss': 0.0,
        # Of the distance from the teacher's tokens, where there is one.
        'distillation_loss': 4.0,
      },
      # Of what it costs that a query finds an object; see `set_losses.matching_cost`.
      'matching': {'class_weight': 2.0, 'box_weight': 5.0, 'giou_weight': 2.0},
      # Of `margin_loss`.
      'margin': 0.5,
      # Of `pair_margin_loss`.
      'pair_margin': -0.3,
      # A trained localizer whose maps and queries the model is to have too (ViDT).
      'distillation': {
        # As `config.model`. None: no teacher.
        'teacher': {'name': config_dict.placeholder(str)},
        # A file that `python -m crossattn_jax.parity convert` wrote, or a workdir.
        'teacher_weights': config_dict.placeholder(str),
      },
      'evaluation': {
        # Detections with a lower score are none.
        'score_threshold': 0.0,
        # Of an image.
        'max_boxes': 100,
        # Whether the best pairs of a query and a class are taken, though one class of two finds
        # nothing, as by the authors.
        'official': False,
        # By which area objects are small, medium or large: in pixels of their 'file', or of the
        # image as 'resized' for the network, as by the authors.
        'area': 'file',
      },
      # Least score of what pictures and records of predictions show; files have all detections.
      'shown_score': 0.3,
    }
  )
  config.dataset = data.default_config()
  # What `predict` searches for: files of sketches, with commas between them, or a folder of them.
  config.predict = ml_collections.ConfigDict({'sketch': config_dict.placeholder(str)})
  return config


def complete_config(config: ml_collections.ConfigDict) -> list[str]:
  """Takes splits and categories from the data; see `tasks.complete_config`."""
  return sources.complete(config.dataset)


class SketchLocalization(detection.Detection):
  """Finds the objects of a photo that are what sketches show.

  Attributes:
    categories: that sketches may show, by number.
  """

  Examples = data.Examples
  Predictor = predictions.Predictor
  Serving = serving.Serving

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__(config)
    self.categories = tuple(config.dataset.class_names)
    # Whatever a sketch shows, objects that are found are of the only class.
    self.class_names, self.category_ids = (sources.MATCH,), (1,)
    self._teacher = self._create_teacher()
    if self._teacher is not None:
      given, key = config.task.distillation, 'config.task.distillation.teacher_weights'
      fields = {field: x for field, x in given.teacher.items() if x is not None}
      name = fields.pop('name')
      self.frozen_models['teacher'] = base.FrozenModel(
        name, fields, functools.partial(self.init, model=self._teacher), given.teacher_weights, key
      )

  def _create_teacher(self) -> sketch_localizer.SketchLocalizer | None:
    """Builds the model whose tokens are learnt too; None without one."""
    options = self.config.task.distillation.teacher
    if options.name is None:
      return None
    key, teacher = 'config.task.distillation.teacher', models.create_model(**options)
    if not isinstance(teacher, sketch_localizer.SketchLocalizer):
      raise ValueError(f'{key}.name={options.name!r} is no sketch localizer, as a teacher must be')
    for field in _ALIKE:
      given, own = getattr(teacher, field), getattr(self.model, field)
      if given != own:
        raise ValueError(
          f'{key}.{field} is {given}, config.model.{field} is {own}: tokens of both are compared '
          'one by one; set both alike'
        )
    return teacher

  def check_options(self) -> None:
    """Refuses what does not belong together or cannot be, naming the keys."""
    config, options, model = self.config, self.config.task, self.model
    if not isinstance(model, sketch_localizer.SketchLocalizer):
      raise ValueError(
        f'config.model.name={config.model.name!r} does not find what sketches show; '
        "list_models('sketch_localizer*') shows what does"
      )
    detection.check_thresholds(config)
    if options.evaluation.area not in average_precision.AREAS:
      raise ValueError(
        f'config.task.evaluation.area={options.evaluation.area!r} is not one of '
        f'{", ".join(average_precision.AREAS)}'
      )
    if config.dataset.max_boxes > model.num_queries:
      raise config_errors.ConfigError(
        f'config.dataset.max_boxes={config.dataset.max_boxes} objects of an image need a query '
        f'each, of which there are config.model.num_queries={model.num_queries}; set '
        f'config.dataset.max_boxes={model.num_queries}, or give the model more',
        {'dataset.max_boxes': model.num_queries},
      )

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Normalised images in a canvas, their sketches, and the padded objects these show."""
    return data.batch_spec(self.config.dataset, batch_size)

  def model_inputs(self, batch: base.Batch) -> tuple[jax.Array, jax.Array]:
    """The image and the sketches."""
    return batch['image'], batch['sketches']

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """The weighted sum of the losses of all levels; see `losses.localizer_losses`."""
    options, size = self.config.task, batch['image_size']
    variables = dict(variables)
    teacher_variables = variables.pop('teacher', None)
    (outputs, features), updated = self.forward(
      variables, batch, jax.random.split(rng), train, image_size=size
    )
    reported = losses.localizer_losses(
      outputs,
      types.Truths(batch['boxes'], batch['labels']),
      size,
      options.loss_weights,
      matching=options.matching,
      margin=options.margin,
      pair_margin=options.pair_margin,
    )
    if train and self._teacher is not None:
      _, taught = self._teacher.apply(teacher_variables, *self.model_inputs(batch), image_size=size)
      distance = losses.distillation_loss(features, taught)
      reported['distillation_loss'] = options.loss_weights.distillation_loss * distance
    loss = sum(value for name, value in reported.items() if name.endswith('_loss'))
    return loss, (reported, updated)

  def find(
    self, variables: base.Variables, batch: base.Batch
  ) -> tuple[types.Detections, jax.Array, Features]:
    """What the sketches show, in pixels of the images' files.

    Args:
      variables: of the model.
      batch: 'image', 'image_size', 'original_size' and 'sketches'.

    Returns:
      The objects, whether scores are finite `[batch]`, and the model's features.
    """
    outputs, features = self.model.apply(
      variables, *self.model_inputs(batch), image_size=batch['image_size']
    )
    thresholds = dict(self.config.task.evaluation)
    del thresholds['area']
    # Boxes are fractions of the image, of whatever size.
    found = self.model.decode(outputs, batch['original_size'], **thresholds)
    return found, detection.are_finite(outputs), features

  def detect(
    self, variables: base.Variables, batch: base.Batch
  ) -> tuple[types.Detections, jax.Array]:
    """The objects, in pixels of their files, and whether scores are finite `[batch]`."""
    found, finite, _ = self.find(variables, batch)
    return found, finite

  def evaluate(self, variables: base.Variables, batch: base.Batch) -> base.Evaluation:
    """The number of queries, and what was found for each."""
    evaluation = super().evaluate(variables, batch)
    evaluation.examples['image_size'] = batch['image_size']
    return evaluation

  def reduce_examples(self, examples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """See `average_precision.to_rows`."""
    return average_precision.to_rows(examples)

  def evaluate_examples(
    self, variables: base.Variables, examples: Mapping[str, np.ndarray]
  ) -> dict[str, float]:
    """See `average_precision.evaluate`."""
    source = self.examples(self.config.dataset.eval_split).source
    return average_precision.evaluate(examples, source, self.config.task.evaluation.area)

  @property
  def metric_modes(self) -> dict[str, str]:
    """All are to be high."""
    return dict.fromkeys(average_precision.names(self.categories), 'max')

  @property
  def main_metrics(self) -> list[str]:
    """Those of all, of learnt and of new categories."""
    return ['box_ap50', 'seen_box_ap50', 'unseen_box_ap50', 'box_ap']

  @property
  def metric_words(self) -> dict[str, str]:
    """COCO's, of all categories, and of those that were and were not learnt."""
    words = super().metric_words
    seen = {f'seen_{name}': f'categories that were learnt; {x}' for name, x in words.items()}
    unseen = {f'unseen_{name}': f'categories never seen; {x}' for name, x in words.items()}
    return words | seen | unseen

  def summary(self, metrics: Mapping[str, Any]) -> list[str]:
    """A table of average precisions of all, seen and unseen categories."""
    return [average_precision.table(metrics)]
