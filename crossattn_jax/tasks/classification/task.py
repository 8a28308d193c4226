"""Image classification: cross entropy with label smoothing, mixup and CutMix; top-1 and top-5.

Where images have any number of classes (`dataset.multi_label`), see `multi_label`.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_dict
import numpy as np

from crossattn_jax import config_errors, models
from crossattn_jax.data.classification import batches as data
from crossattn_jax.data.classification import mixing, sources
from crossattn_jax.metrics import classification as metrics
from crossattn_jax.metrics import segmentation
from crossattn_jax.tasks import base, classifier, losses, multi_label, review
from crossattn_jax.tasks.classification import predictions, serving

DISTILLATIONS = ('none', 'hard', 'soft')

# Where a model keeps the logits of a head of its own for the teacher.
_DISTILLATION_HEAD = 'logits/distillation'


def default_config() -> ml_collections.ConfigDict:
  """The `task` and `dataset` sections of a classification experiment."""
  config = ml_collections.ConfigDict()
  config.task = ml_collections.ConfigDict(
    {
      'name': 'classification',
      # Share of the target that is spread over all classes.
      'label_smoothing': 0.0,
      # Parameter of the Beta distribution by which two images are blended (mixup); 0 is off.
      'mixup_alpha': 0.0,
      # That of the area by which one is pasted into the other (CutMix); 0 is off.
      'cutmix_alpha': 0.0,
      # Probability that a batch is mixed, by either.
      'mix_probability': 1.0,
      # Probability of CutMix where both are on.
      'switch_probability': 0.5,
      # The loss is then (1 - weight) times that against the labels plus `weight` times that against
      # a trained teacher, which sees the same augmented and mixed images: 'hard' against its
      # decision, 'soft' against its distribution at `temperature`. It is learnt by the model's
      # distillation head where there is one.
      'distillation': {
        # 'none', 'hard' or 'soft'.
        'kind': 'none',
        # Of the loss against the teacher.
        'weight': 0.5,
        # By which logits are divided for 'soft'.
        'temperature': 1.0,
        # As `config.model`: any registered model and its fields; the student's classes by default.
        'teacher': {'name': config_dict.placeholder(str)},
        # The teacher's: a file that `python -m crossattn_jax.parity convert` wrote, or a workdir.
        'teacher_weights': config_dict.placeholder(str),
      },
    }
  )
  config.dataset = data.default_config()
  return config


def complete_config(config: ml_collections.ConfigDict) -> list[str]:
  """Takes classes and splits from the data set; see `tasks.complete_config`.

  The model takes as many channels as images have, where the config leaves that to it.
  """
  notes = base.complete_splits(config, sources.complete_splits)
  if config.dataset.multi_label is None:
    config.dataset.multi_label = sources.is_multi_label(config.dataset)
    if config.dataset.multi_label:
      notes.append('images have any number of classes: dataset.multi_label=True')
  classes = classifier.complete_classes(config, data.Examples)
  if classes and config.model.num_classes == 1 and not config.dataset.multi_label:
    raise ValueError(
      f'dataset {config.dataset.name!r} has one class only, {config.dataset.class_names[0]!r}: '
      'expected a folder of images per class in dataset.data_dir, or in its train and val'
    )
  notes += classes
  model, mean = config.model, config.dataset.mean
  if mean is None or model.get('num_channels', 0) is not None:
    return notes
  if models.create_model(**model).num_channels != len(mean):
    model.num_channels = len(mean)
    colors = {1: 'grey', 3: 'RGB'}.get(len(mean))
    notes.append(f'the model takes {colors} images, as dataset.mean says')
  return notes


def upgrade_config(config: dict[str, Any]) -> None:
  """Earlier versions ignored EXIF orientations."""
  config['dataset'].setdefault('decoding', {}).setdefault('upright', False)


def _check_channels(config: ml_collections.ConfigDict, model: nn.Module) -> None:
  channels = len(config.dataset.mean)
  expected = getattr(model, 'num_channels', channels)
  if channels != expected:
    raise ValueError(
      f'config.dataset.mean has {channels} values, one per channel, but {config.model.name!r} '
      f'takes images of {expected}: set config.model.num_channels={channels}, or give '
      f'config.dataset.mean and config.dataset.std {expected} values each'
    )


class Classification(classifier.Classifier):
  """Assigns one of a fixed set of classes to an image, or any number of them."""

  Examples = data.Examples
  Predictor = predictions.Predictor
  Serving = serving.Serving

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__(config)
    self.image_shape = (*config.dataset.image_size, len(config.dataset.mean))
    self.multi_label = bool(config.dataset.multi_label)
    if self.multi_label:
      _refuse_single_label(config.task)
    _check_channels(config, self.model)
    self._teacher = self._create_teacher()
    if self._teacher is not None:
      distillation = config.task.distillation
      self.frozen_models['teacher'] = base.FrozenModel(
        name=distillation.teacher.name,
        overrides=self._teacher_fields(),
        init=lambda rng: self._teacher.init({'params': rng}, jnp.ones((1, *self.image_shape))),
        weights=distillation.teacher_weights,
        config_key='config.task.distillation.teacher_weights',
      )

  def _create_teacher(self) -> nn.Module | None:
    """Builds the model to learn from; None without distillation."""
    config = self.config.task.distillation
    key = 'config.task.distillation'
    if config.kind not in DISTILLATIONS:
      raise ValueError(f'{key}.kind={config.kind!r} is not one of {", ".join(DISTILLATIONS)}')
    if config.kind == 'none':
      return None
    if config.teacher.name is None:
      raise ValueError(
        f'{key}.kind={config.kind!r} needs a teacher: set {key}.teacher=models.model_config(NAME) '
        f"and {key}.teacher_weights, or {key}.kind='none'"
      )
    if not 0 <= config.weight <= 1 or config.temperature <= 0:
      raise ValueError(
        f'{key}: weight={config.weight} must be in [0, 1], temperature={config.temperature} '
        'positive'
      )
    teacher = models.create_model(config.teacher.name, **self._teacher_fields())
    if teacher.num_classes != self.model.num_classes:
      raise ValueError(
        f'the teacher {config.teacher.name!r} has {teacher.num_classes} classes, the student '
        f'{self.config.model.name!r} has {self.model.num_classes}; set {key}.teacher.num_classes '
        'or config.model.num_classes'
      )
    return teacher

  def _teacher_fields(self) -> dict[str, Any]:
    given = self.config.task.distillation.teacher.items()
    fields = {field: value for field, value in given if field != 'name' and value is not None}
    return {'num_classes': self.model.num_classes, **fields}

  def describe_preprocessing(self) -> dict[str, Any]:
    """What makes an image of a file."""
    return data.describe_preprocessing(self.config.dataset)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Normalised images `[batch, height, width, channels]` and integer labels `[batch]`.

    Where images have any number of classes, labels are as `multi_label.label_spec`.
    """
    label = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    if self.multi_label:
      label = multi_label.label_spec(batch_size, self.model.num_classes)
    return {
      'image': jax.ShapeDtypeStruct((batch_size, *self.image_shape), jnp.float32),
      'label': label,
    }

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """Mean cross entropy of a batch against (mixed, smoothed) labels, and against a teacher."""
    if self.multi_label:
      return self._multi_label_loss(variables, batch, rng, train)
    variables = dict(variables)
    teacher_variables = variables.pop('teacher', None)
    config = self.config.task
    images, labels = batch['image'], batch['label']
    mix = train and (config.mixup_alpha > 0 or config.cutmix_alpha > 0)
    rng_mix, *rngs = jax.random.split(rng, 3)
    if mix:
      images, targets = mixing.mix_batch(
        images,
        labels,
        rng_mix,
        num_classes=self.model.num_classes,
        smoothing=config.label_smoothing,
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        probability=config.mix_probability,
        switch_probability=config.switch_probability,
      )
    (logits, features), updated = self.forward(variables, {'image': images}, rngs, train)
    if mix:
      per_example = losses.soft_target_cross_entropy(logits, targets)
      labels = jnp.argmax(targets, axis=-1)
    else:
      smoothing = config.label_smoothing if train else 0.0
      per_example = losses.label_smoothing_cross_entropy(logits, labels, smoothing)
    accuracy = jnp.mean(metrics.in_top_k(logits, labels, 1), dtype=jnp.float32)
    reported = {'accuracy': accuracy}
    if train:
      per_example, distilled = self._distill(
        per_example, logits, features, images, teacher_variables
      )
      reported |= distilled
    return jnp.mean(per_example), (reported, updated)

  def _multi_label_loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """Mean binary cross entropy over batch and classes against (smoothed) labels."""
    (logits, _), updated = self.forward(variables, batch, jax.random.split(rng), train)
    smoothing = self.config.task.label_smoothing if train else 0.0
    targets = (1 - smoothing) * batch['label'] + smoothing / 2
    return jnp.mean(losses.multi_label_cross_entropy(logits, targets)), ({}, updated)

  def _distill(
    self,
    per_example: jax.Array,
    logits: jax.Array,
    features: dict[str, jax.Array],
    images: jax.Array,
    teacher_variables: base.Variables | None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Blends the loss of each example with that against the teacher; its mean is a metric."""
    config = self.config.task.distillation
    if self._teacher is None:
      if _DISTILLATION_HEAD in features:
        raise ValueError(
          f'{self.config.model.name!r} has a distillation head, which nothing would train and the '
          'evaluation averages in: set config.model.distillation=False, or a teacher by '
          "config.task.distillation.kind='hard'"
        )
      return per_example, {}
    teacher_logits, _ = self._teacher.apply(teacher_variables, images)
    distilled = losses.distillation_loss(
      features.get(_DISTILLATION_HEAD, logits), teacher_logits, config.kind, config.temperature
    )
    blended = (1 - config.weight) * per_example + config.weight * distilled
    return blended, {'distillation_loss': jnp.mean(distilled)}

  def evaluate(self, variables: base.Variables, batch: base.Batch) -> base.Evaluation:
    """Counts of examples and hits and the summed loss of a batch."""
    logits, _ = self.model.apply(variables, batch['image'])
    if self.multi_label:
      return multi_label.evaluate(logits, batch)
    labels, mask = batch['label'], batch['mask']
    loss = losses.cross_entropy(logits, labels)
    return base.Evaluation(
      sums={
        'count': jnp.sum(mask, dtype=jnp.int32),
        'top_1': jnp.sum(metrics.in_top_k(logits, labels, 1) & mask, dtype=jnp.int32),
        'top_5': jnp.sum(metrics.in_top_k(logits, labels, 5) & mask, dtype=jnp.int32),
        'loss': jnp.sum(jnp.where(mask, loss, 0.0)),
      },
      examples={
        'index': batch['index'],
        'label': labels,
        'predicted': jnp.argmax(logits, axis=-1),
        'loss': loss,
      },
    )

  def review(
    self, evaluation: base.Evaluation, examples: Mapping[str, np.ndarray]
  ) -> review.Review:
    """Which classes are taken for which, and the images with the largest loss."""
    if self.multi_label:
      return multi_label.review_of(examples, self.all_class_names)
    names, loss, confusion = self.all_class_names, examples['loss'], None
    if len(names) <= review.MOST_CLASSES:
      counts = segmentation.host_confusion_matrix(
        examples['label'], examples['predicted'], len(names)
      )
      confusion = review.Confusion(counts, names, 'images')
    return review.Review(
      confusion,
      review.worst(examples['index'], loss, lambda row: f'loss {loss[row]:.3g}'),
    )

  @property
  def metric_modes(self) -> dict[str, str]:
    """Accuracy is to be high, the loss low."""
    if self.multi_label:
      return multi_label.METRIC_MODES
    return {'accuracy': 'max', 'accuracy_top_5': 'max', 'loss': 'min'}

  @property
  def metric_words(self) -> dict[str, str]:
    """Shares of images, and the loss."""
    if self.multi_label:
      return multi_label.METRIC_WORDS
    return {
      'accuracy': 'share of images whose best class is the true one',
      'accuracy_top_5': 'share of images whose true class is among the best five',
      'loss': 'cross entropy of the true class, mean over images',
    }

  def metrics(self, evaluation: base.Evaluation) -> dict[str, float]:
    """Accuracy (top-1), top-5 accuracy, mean loss and the number of examples."""
    if self.multi_label:
      return multi_label.metrics(evaluation)
    sums = evaluation.sums
    count = int(sums['count'])
    return {
      'accuracy': sums['top_1'] / count,
      'accuracy_top_5': sums['top_5'] / count,
      'loss': sums['loss'] / count,
      'examples': count,
    }


def _refuse_single_label(config: ml_collections.ConfigDict) -> None:
  """Refuses what is made for images with one class each, where they have any number."""
  changes = {f'task.{key}': 0.0 for key in ('mixup_alpha', 'cutmix_alpha') if config[key]}
  if config.distillation.kind != 'none':
    changes['task.distillation.kind'] = 'none'
  if changes:
    flags = ' '.join(f'--config.{key}={value}' for key, value in changes.items())
    raise config_errors.ConfigError(
      f'mixing and teachers are for images with one class each (dataset.multi_label); set {flags}',
      changes,
    )
