"""Image classification: cross entropy with label smoothing, mixup and CutMix; top-1 and top-5."""

from collections.abc import Sequence
import functools
import json
import pathlib
from typing import Any

from absl import logging
from etils import epath
from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_dict
import numpy as np

from crossattn_jax import models
from crossattn_jax.data.classification import batches as data
from crossattn_jax.data.classification import mixing
from crossattn_jax.metrics import classification as metrics
from crossattn_jax.tasks import base, losses, pictures

DISTILLATIONS = ('none', 'hard', 'soft')

# Where a model keeps the logits of a head of its own for the teacher.
_DISTILLATION_HEAD = 'logits/distillation'


def default_config() -> ml_collections.ConfigDict:
  """The `task` and `dataset` sections of a classification experiment."""
  config = ml_collections.ConfigDict()
  config.task = ml_collections.ConfigDict(
    {
      'name': 'classification',
      'label_smoothing': 0.0,
      # Parameters of the Beta distributions; 0 switches each off.
      'mixup_alpha': 0.0,
      'cutmix_alpha': 0.0,
      'mix_probability': 1.0,
      # Of CutMix where both are on.
      'switch_probability': 0.5,
      # The loss is then (1 - weight) times that against the labels plus `weight` times that against
      # a trained teacher, which sees the same augmented and mixed images: 'hard' against its
      # decision, 'soft' against its distribution at `temperature`. It is learnt by the model's
      # distillation head where there is one.
      'distillation': {
        'kind': 'none',
        'weight': 0.5,
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


def create_task(config: ml_collections.ConfigDict) -> 'Classification':
  """Builds the task; see `tasks.create_task`."""
  return Classification(config)


class Classification(base.Task):
  """Assigns one of a fixed set of classes to an image."""

  Examples = data.Examples

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__(config)
    self._image_shape = (*config.dataset.image_size, len(config.dataset.mean))
    self._teacher = self._create_teacher()

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
    teacher = models.create_model(
      **{'num_classes': self.model.num_classes}
      | {field: value for field, value in config.teacher.items() if value is not None}
    )
    if teacher.num_classes != self.model.num_classes:
      raise ValueError(
        f'the teacher {config.teacher.name!r} has {teacher.num_classes} classes, the student '
        f'{self.config.model.name!r} has {self.model.num_classes}; set {key}.teacher.num_classes '
        'or config.model.num_classes'
      )
    return teacher

  def frozen_models(self) -> dict[str, base.FrozenModel]:
    """The teacher, where there is one."""
    if self._teacher is None:
      return {}
    config = self.config.task.distillation
    image = jnp.zeros((1, *self._image_shape))
    return {
      'teacher': base.FrozenModel(
        name=config.teacher.name,
        init=lambda rng: self._teacher.init({'params': rng}, image),
        weights=config.teacher_weights,
        config_key='config.task.distillation.teacher_weights',
      )
    }

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
    """Normalised images `[batch, height, width, channels]` and integer labels `[batch]`."""
    return {
      'image': jax.ShapeDtypeStruct((batch_size, *self._image_shape), jnp.float32),
      'label': jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }

  def init(self, rng: jax.Array) -> base.Variables:
    """Initial variables of the model."""
    return self.model.init({'params': rng}, jnp.zeros((1, *self._image_shape)))

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """Mean cross entropy of a batch against (mixed, smoothed) labels, and against a teacher."""
    variables = dict(variables)
    teacher_variables = variables.pop('teacher', None)
    config = self.config.task
    images, labels = batch['image'], batch['label']
    num_classes = self.model.num_classes
    mix = train and (config.mixup_alpha > 0 or config.cutmix_alpha > 0)
    rng_mix, rng_dropout, rng_drop_path = jax.random.split(rng, 3)
    if mix:
      images, targets = mixing.mix_batch(
        images,
        labels,
        rng_mix,
        num_classes=num_classes,
        smoothing=config.label_smoothing,
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        probability=config.mix_probability,
        switch_probability=config.switch_probability,
      )
    state = [name for name in variables if name != 'params']
    (logits, features), updated = self.model.apply(
      variables,
      images,
      train=train,
      rngs={'dropout': rng_dropout, 'drop_path': rng_drop_path},
      mutable=state if train else [],
    )
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
    labels, mask = batch['label'], batch['mask']
    loss = losses.cross_entropy(logits, labels)
    return base.Evaluation(
      sums={
        'count': jnp.sum(mask, dtype=jnp.int32),
        'top_1': jnp.sum(metrics.in_top_k(logits, labels, 1) & mask, dtype=jnp.int32),
        'top_5': jnp.sum(metrics.in_top_k(logits, labels, 5) & mask, dtype=jnp.int32),
        'loss': jnp.sum(jnp.where(mask, loss, 0.0)),
      }
    )

  def metrics(self, evaluation: base.Evaluation) -> dict[str, float]:
    """Accuracy (top-1), top-5 accuracy, mean loss and the number of examples."""
    sums = evaluation.sums
    count = int(sums['count'])
    return {
      'accuracy': sums['top_1'] / count,
      'accuracy_top_5': sums['top_5'] / count,
      'loss': sums['loss'] / count,
      'examples': count,
    }

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Class probabilities `[batch, classes]` and attention maps `[batch, rows, columns]`.

    A model takes part in the pictures by a method `attention_maps(features)`, which returns named
    maps. Where what looks has a place in the image, `attention_queries(features)` returns it as
    maps of the same names and shapes.
    """
    logits, features = self.model.apply(variables, batch['image'])
    outputs = {
      'probabilities': jax.nn.softmax(
        logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1
      )
    }
    return outputs | pictures.attention_outputs(self.model, features)

  def write_predictions(
    self, variables: base.Variables, inputs: Sequence[epath.Path], output: epath.Path
  ) -> list[dict[str, Any]]:
    """Writes `predictions.json` and a picture per image with its best classes and attention."""
    predict = jax.jit(self.predict)
    records, used = [], set()
    for path in inputs:
      image, picture = data.read_image(path, self.config.dataset)
      outputs = jax.device_get(predict(variables, {'image': image[None]}))
      best = np.argsort(-outputs['probabilities'][0], kind='stable')[:5]
      record = {
        'input': str(path),
        'classes': [
          {
            'index': int(index),
            'name': self._class_name(int(index)),
            'probability': float(outputs['probabilities'][0, index]),
          }
          for index in best
        ],
      }
      shown = output / f'{pictures.unused_name(path.stem, used)}.png'
      record['picture'] = str(shown)
      pictures.classified_image(
        shown,
        picture,
        [(entry['name'], entry['probability']) for entry in record['classes']],
        pictures.attention_of(outputs, 0),
      )
      records.append(record)
    (output / 'predictions.json').write_text(json.dumps(records, indent=2) + '\n')
    return records

  def write_samples(self, variables: base.Variables, path: epath.Path) -> None:
    """Writes a sheet of evaluation images with predicted and true classes and attention."""
    batch = next(iter(self.eval_data(16, 0, 1)))
    outputs = jax.device_get(jax.jit(self.predict)(variables, {'image': batch['image']}))
    shown = data.denormalize(batch['image'], self.config.dataset)
    samples = [
      pictures.Sample(
        image=shown[row],
        predicted=self._class_name(int(np.argmax(outputs['probabilities'][row]))),
        true=self._class_name(int(batch['label'][row])),
        probability=float(np.max(outputs['probabilities'][row])),
        attention=pictures.attention_of(outputs, row),
      )
      for row in range(len(shown))
      if batch['mask'][row]
    ]
    pictures.classification_sheet(path, samples)

  def serving(self) -> base.Serving:
    """Normalised images in, logits out."""
    script = pathlib.Path(__file__).with_name('serving_script.py')

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
      script=script,
    )

  def _class_name(self, index: int) -> str:
    return self.class_names[index] if index < len(self.class_names) else str(index)
