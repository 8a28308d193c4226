"""Semantic segmentation: a class for every pixel; mean intersection over union."""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_dict
import numpy as np

from crossattn_jax.data.segmentation import batches as data
from crossattn_jax.data.segmentation import taxonomies
from crossattn_jax.layers import dynamic_resize, resize
from crossattn_jax.metrics import segmentation as metrics
from crossattn_jax.tasks import base, pictures
from crossattn_jax.tasks.segmentation import inference, losses
from crossattn_jax.tasks.segmentation import pictures as segmentation_pictures

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
      'ohem_threshold': 0.7,
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
        # Of the window: (height, width); None: that of the training crops.
        'tile': config_dict.placeholder(tuple),
        'overlap': 1 / 3,
        # Of whole images: factors of their size, and whether mirror images vote too.
        'scales': (1.0,),
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


def create_task(config: ml_collections.ConfigDict) -> 'Segmentation':
  """Builds the task; see `tasks.create_task`."""
  return Segmentation(config)


class Segmentation(base.Task):
  """Assigns one of a fixed set of classes to every pixel of an image."""

  Examples = data.Examples

  def __init__(self, config: ml_collections.ConfigDict):
    self._taxonomy = taxonomies.find_taxonomy(config.dataset.name)
    _check(config)
    super().__init__(config)
    if not hasattr(self.model, 'style'):
      raise ValueError(
        f'config.model.name={config.model.name!r} does not label pixels: add a head to a backbone, '
        f"as in 'biformer_small+upernet'; list_models('*+*') shows all"
      )
    if self.model.num_classes != self._taxonomy.num_classes:
      raise ValueError(
        f'config.model.num_classes is {self.model.num_classes}, but dataset '
        f'{config.dataset.name!r} has {self._taxonomy.num_classes} classes; set '
        f'config.model.num_classes={self._taxonomy.num_classes}'
      )
    self._align_corners = config.task.align_corners
    if self._align_corners is None:
      self._align_corners = self.model.style().corner_aligned
    self._crop = tuple(config.dataset.image_size)

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes."""
    return self._taxonomy.class_names

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Normalised images `[batch, height, width, 3]` and classes `[batch, height, width]`."""
    return {
      'image': jax.ShapeDtypeStruct((batch_size, *self._crop, 3), jnp.float32),
      'label': jax.ShapeDtypeStruct((batch_size, *self._crop), jnp.int32),
    }

  def init(self, rng: jax.Array) -> base.Variables:
    """Initial variables of the model."""
    return self.model.init({'params': rng}, jnp.zeros((1, *self._crop, 3)))

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """The loss of a batch over all pixels of all devices that have a class."""
    config, labels = self.config.task, batch['label']
    rng_dropout, rng_drop_path = jax.random.split(rng)
    state = [name for name in variables if name != 'params']
    (logits, features), updated = self.model.apply(
      variables,
      batch['image'],
      train=train,
      rngs={'dropout': rng_dropout, 'drop_path': rng_drop_path},
      mutable=state if train else [],
    )
    logits = self._resized(logits, labels.shape[1:])
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
      auxiliary = self._resized(features['auxiliary_logits'], labels.shape[1:])
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

  def _resized(self, logits: jax.Array, size: Sequence[int]) -> jax.Array:
    return resize.resize(logits, size, 'bilinear', self._align_corners)

  def evaluate(self, variables: base.Variables, batch: base.Batch) -> base.Evaluation:
    """Pixels by true and predicted class, and the number of images."""
    classes = self._classes(variables, batch)
    mask = batch['mask']
    return base.Evaluation(
      sums={
        'count': jnp.sum(mask, dtype=jnp.int32),
        'confusion': metrics.confusion_matrix(
          batch['label'],
          classes,
          self.model.num_classes,
          mask=jnp.broadcast_to(mask[:, None, None], classes.shape),
        ),
      }
    )

  def metrics(self, evaluation: base.Evaluation) -> dict[str, float]:
    """Mean IoU, pixel accuracy, mean accuracy, the number of images, and the IoU of each class."""
    confusion = evaluation.sums['confusion']
    absent = self.config.task.evaluation.absent_classes
    iou = metrics.intersection_over_union(confusion)
    results = {
      'mean_iou': metrics.mean_over_classes(iou, absent),
      'pixel_accuracy': metrics.pixel_accuracy(confusion),
      'mean_accuracy': metrics.mean_over_classes(metrics.class_accuracy(confusion), absent),
      'examples': int(evaluation.sums['count']),
    }
    # Classes that do not occur have none.
    for name, value in zip(self.class_names, iou, strict=True):
      if not np.isnan(value):
        results[f'iou/{name}'] = float(value)
    return results

  def _scores(self, variables: base.Variables, images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Logits or probabilities of every pixel `[batch, height, width, classes]`."""
    options = self.config.task.evaluation

    def predict(images: jax.Array) -> jax.Array:
      return self.model.apply(variables, images)[0]

    if options.mode == 'sliding':
      return inference.sliding_window(
        predict,
        images,
        tuple(options.tile or self._crop),
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

  def _classes(self, variables: base.Variables, batch: base.Batch) -> jax.Array:
    """Predicted classes, of the labels' shape; meaningless beyond each label map."""
    scores = self._scores(variables, batch['image'], batch['image_size'])
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

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Classes of the pixels of images as `data.read_image` prepares them.

    Returns:
      `classes` `[batch, rows, columns]`, of which `label_size` counts, and where the model has them
      attention maps `attention_maps/NAME` and `attention_queries/NAME` over the padded image.
    """
    outputs = {'classes': self._classes(variables, batch)}
    if hasattr(self.model, 'attention_maps'):
      _, features = self.model.apply(variables, batch['image'])
      outputs |= pictures.attention_outputs(self.model, features)
    return outputs

  def write_predictions(
    self, variables: base.Variables, inputs: Sequence[epath.Path], output: epath.Path
  ) -> list[dict[str, Any]]:
    """Writes what each pixel of each image is, in three forms, and `predictions.json`.

    `labels/NAME.png` holds labels as the data set's files have them (for Cityscapes what the test
    server takes), `colors/NAME.png` the classes with a palette, `NAME.png` the image, the classes
    laid over it, and a legend.
    """
    predict = jax.jit(self.predict)
    folders = {name: output / name for name in ('labels', 'colors')}
    for folder in folders.values():
      folder.mkdir(parents=True, exist_ok=True)
    records, used = [], set()
    for path in inputs:
      batch, picture = data.read_image(path, self.config.dataset)
      outputs = jax.device_get(predict(variables, batch))
      height, width = batch['label_size'][0]
      classes = outputs['classes'][0, :height, :width].astype(np.uint8)
      name = pictures.unused_name(path.stem, used)
      files = {'picture': output / f'{name}.png'}
      files |= {kind: folder / f'{name}.png' for kind, folder in folders.items()}
      segmentation_pictures.write_labels(files['labels'], self._taxonomy.to_labels(classes))
      segmentation_pictures.write_colors(files['colors'], classes, self._taxonomy.palette)
      segmentation_pictures.overlay(
        files['picture'],
        np.asarray(picture),
        classes,
        self.class_names,
        self._taxonomy.palette,
        self._attention(batch, outputs),
      )
      present, counts = np.unique(classes, return_counts=True)
      order = np.argsort(-counts, kind='stable')
      records.append(
        {
          'input': str(path),
          **{kind: str(file) for kind, file in files.items()},
          'classes': [
            {
              'index': int(present[i]),
              'name': self.class_names[present[i]],
              'share': float(counts[i] / classes.size),
            }
            for i in order
          ],
        }
      )
    (output / 'predictions.json').write_text(json.dumps(records, indent=2) + '\n')
    return records

  def _attention(
    self, batch: base.Batch, outputs: dict[str, np.ndarray]
  ) -> tuple[np.ndarray, dict[str, pictures.Attention]] | None:
    """The network's input and its attention maps; None without any."""
    shown = pictures.attention_of(outputs, 0)
    if not shown:
      return None
    return data.denormalize(batch['image'][0], self.config.dataset), shown

  def write_samples(self, variables: base.Variables, path: epath.Path) -> None:
    """Writes a sheet of evaluation images with predicted and true classes."""
    batch = next(iter(self.eval_data(8, 0, 1)))
    inputs = {name: value for name, value in batch.items() if name not in ('mask', 'skipped')}
    outputs = jax.device_get(jax.jit(self._classes)(variables, inputs))
    samples = []
    for row in np.flatnonzero(batch['mask']):
      height, width = batch['label_size'][row]
      rows, columns = batch['image_size'][row]
      samples.append(
        segmentation_pictures.Sample(
          image=data.denormalize(batch['image'][row, :rows, :columns], self.config.dataset),
          predicted=outputs[row, :height, :width],
          true=batch['label'][row, :height, :width],
        )
      )
    segmentation_pictures.sheet(path, samples, self.class_names, self._taxonomy.palette)

  def serving(self) -> base.Serving:
    """Normalised images of the training crops' size in, logits of every pixel out."""
    script = pathlib.Path(__file__).with_name('serving_script.py')

    def run(variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
      logits, _ = self.model.apply(variables, inputs['image'])
      return {'logits': self._resized(logits, self._crop)}

    return base.Serving(
      run=run,
      inputs={'image': jax.ShapeDtypeStruct((*self._crop, 3), jnp.float32)},
      description={
        'preprocessing': data.describe_preprocessing(self.config.dataset),
        'classes': list(self.class_names),
        'labels': self._taxonomy.to_labels(
          np.arange(self._taxonomy.num_classes, dtype=np.uint8)
        ).tolist(),
        'palette': self._taxonomy.palette.tolist(),
      },
      script=script,
    )


def _check(config: ml_collections.ConfigDict) -> None:
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
  num_classes = taxonomies.find_taxonomy(config.dataset.name).num_classes
  if task.class_weights and len(task.class_weights) != num_classes:
    raise ValueError(
      f'config.task.class_weights has {len(task.class_weights)} entries; dataset '
      f'{config.dataset.name!r} has {num_classes} classes'
    )
