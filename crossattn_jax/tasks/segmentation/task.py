"""Semantic segmentation: a class for every pixel; mean intersection over union."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_dict
import numpy as np

from crossattn_jax import models
from crossattn_jax.data.segmentation import batches as data
from crossattn_jax.data.segmentation import sources, taxonomies
from crossattn_jax.layers import dynamic_resize, resize
from crossattn_jax.metrics import segmentation as metrics
from crossattn_jax.tasks import base, review
from crossattn_jax.tasks.segmentation import inference, losses, predictions, serving

LOSSES = ('cross_entropy', 'ohem', 'lovasz')
MODES = ('whole', 'sliding')

# Rows of a label map that are in memory at once where predictions are brought to its size.
_ROWS_AT_ONCE = 64


def default_config() -> ml_collections.ConfigDict:
  """The `task` and `dataset` sections of a segmentation experiment."""
  config = ml_collections.ConfigDict()
  config.task = ml_collections.ConfigDict(
    {
      'name': 'segmentation',
      # Whether logits are resized so that the centres of the pixels in the corners lie on each
      # other, as in CCNet, rather than their edges. None: as the model's heads do.
      'align_corners': config_dict.placeholder(bool),
      # Of the main logits: 'cross_entropy', 'ohem' (hard pixels only) or 'lovasz' (in addition to
      # the cross entropy).
      'loss': 'cross_entropy',
      # Of 'ohem': pixels whose true class is less likely are hard.
      'ohem_threshold': 0.7,
      # Of 'ohem': so many of a batch are hard at least.
      'ohem_min_kept': 100_000,
      # Cross entropy of the auxiliary logits, where there are any.
      'auxiliary_weight': 0.4,
      # One weight per class, or none.
      'class_weights': (),
      # Whether the cross entropy is divided by the number of all pixels (mmsegmentation), or of
      # those that have a class (CCNet).
      'count_ignored': False,
      # Of the category consistent loss; needs config.model.embedding.
      'consistency_weight': 0.0,
      'evaluation': {
        # 'whole' images, or a 'sliding' window.
        'mode': 'whole',
        # (height, width) of the window. None: that of the training crops.
        'tile': config_dict.placeholder(tuple),
        # How much of a window the next one has too.
        'overlap': 1 / 3,
        # Of whole images: factors of their size, over which results are averaged.
        'scales': (1.0,),
        # Of whole images: whether mirror images vote too.
        'flip': False,
        # Whether probabilities are averaged (mmsegmentation), or logits (CCNet).
        'average_probabilities': False,
        # Classes that neither labels nor predictions have: 'zero' counts their IoU as 0 (CCNet),
        # 'skip' leaves them out of the mean (mmsegmentation).
        'absent_classes': 'skip',
      },
    }
  )
  config.dataset = data.default_config()
  return config


def complete_config(config: ml_collections.ConfigDict) -> list[str]:
  """Takes splits and classes from the data set; see `tasks.complete_config`."""
  dataset, notes = config.dataset, base.complete_splits(config, sources.complete_splits)
  if not dataset.class_names:
    found = sources.find_taxonomy(dataset)
    dataset.class_names = found.class_names
    if dataset.name == taxonomies.SEGMENTATION_FOLDER:
      dataset.palette = tuple(map(tuple, found.palette.tolist()))
      if found.holds == 'label':
        dataset.class_values = tuple(found.to_labels(np.arange(found.num_classes)).tolist())
  return notes + base.complete_num_classes(config)


def upgrade_config(config: dict[str, Any]) -> None:
  """Moves what earlier configs had in `task`: the head, into the model's name and fields."""
  task, model = config['task'], config['model']
  if 'absent_classes' in task:
    task.setdefault('evaluation', {})['absent_classes'] = task.pop('absent_classes')
  head = task.pop('head', 'none')
  names = ('head_channels', 'pyramid_channels', 'auxiliary_channels', 'dropout_rate')
  fields = {name: task.pop(name, None) for name in names}
  if head != 'none':
    name = f'{model["name"]}+{head}'
    num_classes = taxonomies.find_taxonomy(config['dataset']['name']).num_classes
    known = models.model_config(name)
    model |= fields | {'name': name, 'num_classes': num_classes}
    config['model'] = {field: value for field, value in model.items() if field in known}


class Segmentation(base.Task):
  """Assigns one of a fixed set of classes to every pixel of an image.

  Attributes:
    taxonomy: the classes.
    class_names: their names.
    crop: (height, width) of the images that are learnt from.
  """

  Examples = data.Examples
  Predictor = predictions.Predictor
  Serving = serving.Serving

  def __init__(self, config: ml_collections.ConfigDict):
    self.taxonomy = taxonomies.of_run(config.dataset)
    self.class_names = self.taxonomy.class_names
    _check(config, self.taxonomy.num_classes)
    super().__init__(config)
    if not hasattr(self.model, 'style'):
      raise ValueError(
        f'config.model.name={config.model.name!r} does not label pixels: add a head to a backbone, '
        f"as in 'biformer_small+upernet'; list_models('*+*') shows all"
      )
    base.check_num_classes(config, self.model.num_classes, self.taxonomy.num_classes)
    self._align_corners = config.task.align_corners
    if self._align_corners is None:
      self._align_corners = self.model.style().corner_aligned
    self.crop = tuple(config.dataset.image_size)

  def create_model(self) -> nn.Module:
    """Builds the model, which has the data set's number of classes where nobody says another."""
    fields = dict(self.config.model)
    if fields.get('num_classes', 0) is None:
      fields['num_classes'] = self.taxonomy.num_classes
    return models.create_model(**fields)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Normalised images `[batch, height, width, 3]` and classes `[batch, height, width]`."""
    return {
      'image': jax.ShapeDtypeStruct((batch_size, *self.crop, 3), jnp.float32),
      'label': jax.ShapeDtypeStruct((batch_size, *self.crop), jnp.int32),
    }

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """The loss of a batch over all pixels of all devices that have a class."""
    config, labels = self.config.task, batch['label']
    (logits, features), updated = self.forward(variables, batch, jax.random.split(rng), train)
    logits = self.resized(logits, labels.shape[1:])
    valid = labels != data.IGNORE_LABEL
    hits = jnp.sum((jnp.argmax(logits, axis=-1) == labels) & valid, dtype=jnp.float32)
    reported = {'accuracy': hits / jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1)}
    if config.loss == 'ohem':
      loss = losses.ohem_cross_entropy(
        logits, labels, threshold=config.ohem_threshold, min_kept=config.ohem_min_kept
      )
    else:
      loss = self._cross_entropy(logits, labels)
    if config.loss == 'lovasz':
      reported['lovasz_loss'] = losses.lovasz_softmax(logits, labels)
      loss += reported['lovasz_loss']
    if config.auxiliary_weight and 'auxiliary_logits' in features:
      auxiliary = self.resized(features['auxiliary_logits'], labels.shape[1:])
      reported['auxiliary_loss'] = self._cross_entropy(auxiliary, labels)
      loss += config.auxiliary_weight * reported['auxiliary_loss']
    if config.consistency_weight:
      consistency = losses.category_consistency(
        features['embedding'], labels, self.model.num_classes
      )
      reported['consistency_loss'] = consistency.total()
      loss += config.consistency_weight * reported['consistency_loss']
    return loss, (reported, updated)

  def _cross_entropy(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    config = self.config.task
    weights = jnp.asarray(config.class_weights) if config.class_weights else None
    return losses.cross_entropy(
      logits, labels, class_weights=weights, count_ignored=config.count_ignored
    )

  def resized(self, logits: jax.Array, size: Sequence[int]) -> jax.Array:
    """Logits `[batch, rows, columns, classes]` at another (height, width)."""
    return resize.resize(logits, size, 'bilinear', self._align_corners)

  def evaluate(self, variables: base.Variables, batch: base.Batch) -> base.Evaluation:
    """Pixels by true and predicted class, and the number of images."""
    scores = self._scores(variables, batch['image'], batch['image_size'])
    classes, labels, mask = self._best(scores, batch), batch['label'], batch['mask']
    finite = jnp.isfinite(scores).all(axis=(1, 2, 3))
    return base.Evaluation(
      sums={
        'count': jnp.sum(mask, dtype=jnp.int32),
        'not_finite': jnp.sum(~finite & mask, dtype=jnp.int32),
        'confusion': metrics.confusion_matrix(
          labels,
          classes,
          self.model.num_classes,
          mask=jnp.broadcast_to(mask[:, None, None], classes.shape),
        ),
      },
      examples={
        'index': batch['index'],
        'right': jnp.sum(classes == labels, axis=(1, 2), dtype=jnp.int32),
        'pixels': jnp.sum(labels != data.IGNORE_LABEL, axis=(1, 2), dtype=jnp.int32),
      },
    )

  def review(
    self, evaluation: base.Evaluation, examples: Mapping[str, np.ndarray]
  ) -> review.Review:
    """Which classes are taken for which, and the images with the most wrong pixels."""
    wrong = 1 - examples['right'] / np.maximum(examples['pixels'], 1)
    wrong[examples['pixels'] == 0] = 0
    return review.Review(
      review.Confusion(evaluation.sums['confusion'], self.class_names, 'pixels'),
      review.worst(examples['index'], wrong, lambda row: f'{wrong[row]:.1%} wrong'),
    )

  @property
  def metric_modes(self) -> dict[str, str]:
    """All are to be high."""
    names = ['mean_iou', 'pixel_accuracy', 'mean_accuracy']
    names += [f'iou/{name}' for name in self.taxonomy.class_names]
    return dict.fromkeys(names, 'max')

  @property
  def metric_words(self) -> dict[str, str]:
    """Shares of pixels."""
    return metrics.WORDS | {'pixel_accuracy': 'share of pixels with the right class'}

  def metrics(self, evaluation: base.Evaluation) -> dict[str, float]:
    """Mean IoU, pixel accuracy, mean accuracy, the number of images, and the IoU of each class.

    Raises:
      ValueError: no pixel has a class, or scores are not finite.
    """
    self.check_finite(evaluation.sums)
    confusion, count = evaluation.sums['confusion'], int(evaluation.sums['count'])
    if not np.any(confusion):
      dataset = self.config.dataset
      raise ValueError(
        f'none of the pixels of dataset {dataset.name!r}, split {dataset.eval_split!r}, has a '
        'class, so that there is no mean IoU: all of its labels say so'
      )
    absent = self.config.task.evaluation.absent_classes
    iou = metrics.intersection_over_union(confusion)
    return {
      'mean_iou': metrics.mean_over_classes(iou, absent),
      'pixel_accuracy': metrics.pixel_accuracy(confusion),
      'mean_accuracy': metrics.mean_over_classes(metrics.class_accuracy(confusion), absent),
      'examples': count,
      **metrics.named_classes(iou, self.class_names),
    }

  def summary(self, values: Mapping[str, float]) -> list[str]:
    """A table of the IoU of each class, and the means; a dash is a class that does not occur."""
    totals = {'mean IoU': 'mean_iou', 'mean accuracy': 'mean_accuracy'}
    totals['pixel accuracy'] = 'pixel_accuracy'
    return [metrics.table(values, self.class_names, totals)]

  def _scores(self, variables: base.Variables, images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Logits or probabilities of every pixel `[batch, height, width, classes]`."""
    options = self.config.task.evaluation

    def predict(images: jax.Array) -> jax.Array:
      return self.model.apply(variables, images)[0]

    if options.mode == 'sliding':
      return inference.sliding_window(
        predict,
        images,
        tuple(options.tile or self.crop),
        overlap=options.overlap,
        align_corners=self._align_corners,
        sizes=sizes,
      )
    return inference.multi_scale(
      predict,
      images,
      scales=tuple(options.scales),
      flip=options.flip,
      align_corners=self._align_corners,
      probabilities=options.average_probabilities,
    )

  def classes(self, variables: base.Variables, batch: base.Batch) -> jax.Array:
    """Predicted classes, of the labels' shape; meaningless beyond each label map."""
    return self._best(self._scores(variables, batch['image'], batch['image_size']), batch)

  def _best(self, scores: jax.Array, batch: base.Batch) -> jax.Array:
    """Classes with the largest scores, of the labels' shape."""
    if self.config.dataset.evaluation.resize == 'native':
      return jnp.argmax(scores, axis=-1)
    return dynamic_resize.resized_classes(
      scores,
      batch['image_size'],
      batch['label_size'],
      batch['label'].shape[1:],
      align_corners=self._align_corners,
      rows_at_once=_ROWS_AT_ONCE,
    )


def _check(config: ml_collections.ConfigDict, num_classes: int) -> None:
  """Refuses wrong values, naming the key."""
  task, evaluation = config.task, config.task.evaluation
  for key, value, choices in (
    ('loss', task.loss, LOSSES),
    ('evaluation.mode', evaluation.mode, MODES),
    ('evaluation.absent_classes', evaluation.absent_classes, ('zero', 'skip')),
  ):
    if value not in choices:
      raise ValueError(f'config.task.{key}={value!r} is not one of {", ".join(choices)}')
  if evaluation.mode == 'sliding' and (tuple(evaluation.scales) != (1.0,) or evaluation.flip):
    raise ValueError(
      f'config.task.evaluation: a sliding window has one scale and no mirror images, not '
      f"scales={tuple(evaluation.scales)}, flip={evaluation.flip}; set mode='whole', or these to "
      '(1.0,) and False'
    )
  if task.consistency_weight and not config.model.get('embedding'):
    raise ValueError(
      f'config.task.consistency_weight={task.consistency_weight} needs a model with an embedding: '
      'set config.model.embedding=16 of a CCNet, or the weight to 0'
    )
  base.check_class_weights(config, num_classes)
