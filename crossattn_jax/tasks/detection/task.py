"""Object detection: boxes, classes and masks; COCO's average precision."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data.detection import batches as data
from crossattn_jax.data.detection import sources
from crossattn_jax.heads.detection import anchors, types
from crossattn_jax.metrics import coco
from crossattn_jax.models import detector
from crossattn_jax.tasks import base, review
from crossattn_jax.tasks.detection import (
  instances,
  losses,
  mistakes,
  predictions,
  region_losses,
  serving,
)


def _retinanet_losses(
  outputs: Mapping[str, jax.Array],
  truths: types.Truths,
  image_size: jax.Array,
  grid: anchors.AnchorGrid,
  key: jax.Array,
) -> losses.Losses:
  del key
  return losses.retinanet_losses(outputs, truths, image_size, grid)


_PLURALS = {'box': 'boxes', 'mask': 'masks'}
_LOSSES = {
  detector.RetinaNet: _retinanet_losses,
  detector.MaskRCNN: region_losses.mask_rcnn_losses,
}


def default_config() -> ml_collections.ConfigDict:
  """The `task` and `dataset` sections of a detection experiment."""
  config = ml_collections.ConfigDict()
  config.task = ml_collections.ConfigDict(
    {
      'name': 'detection',
      'evaluation': {
        # Detections with a lower score are none.
        'score_threshold': 0.05,
        # A box leaves that overlaps a better one of its class by more.
        'iou_threshold': 0.5,
        # Of an image.
        'max_boxes': 100,
      },
      # Least score of what pictures and records of predictions show; files have all detections.
      'shown_score': 0.3,
    }
  )
  config.dataset = data.default_config()
  return config


def complete_config(config: ml_collections.ConfigDict, opening: Any = sources) -> list[str]:
  """Takes splits and classes from the data set; see `tasks.complete_config`.

  Args:
    config: of the experiment.
    opening: the module that opens data sets.
  """
  dataset, notes = config.dataset, base.complete_splits(config, opening.complete_splits)
  if not dataset.class_names or not dataset.category_ids:
    source = opening.open_source(dataset, dataset.train_split)
    dataset.class_names = tuple(source.class_names)
    dataset.category_ids = tuple(source.category_ids)
  return notes + base.complete_num_classes(config)


class Detection(base.Task):
  """Finds the objects of an image.

  Attributes:
    class_names: of the objects.
    category_ids: their numbers in result files.
    canvas: (height, width) of the arrays that images are learnt in.
    masks: whether objects have masks.
  """

  Examples = data.Examples
  Predictor = predictions.Predictor
  Serving = serving.Serving

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__(config)
    self.Examples.check(config.dataset)
    self.check_options()
    # Files of weights may come without names: then the classes are called by their numbers.
    count = self.model.num_classes
    self.class_names = tuple(config.dataset.class_names) or tuple(map(str, range(count)))
    self.category_ids = tuple(config.dataset.category_ids) or tuple(range(1, count + 1))
    self.canvas = tuple(config.dataset.image_size)
    self.masks = config.dataset.get('masks', False)

  def check_options(self) -> None:
    """Refuses what does not belong together or cannot be, naming the keys."""
    _check_model(self.config, self.model)
    check_thresholds(self.config)
    check_classes(self.config, self.model)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Normalised images `[batch, height, width, 3]` in a canvas, and their padded objects."""
    return data.batch_spec(self.config.dataset, batch_size)

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """The sum of the heads' losses, each a mean over the global batch."""
    *rngs, regions_key, anchors_key = jax.random.split(rng, 4)
    size = batch['image_size']
    truths = types.Truths(batch['boxes'], batch['labels'], batch.get('masks'))
    (outputs, _), updated = self.forward(
      variables, batch, rngs, train, image_size=size, truths=truths, key=regions_key
    )
    grid = self.model.anchors().of_input(batch['image'].shape[1:3])
    reported = _LOSSES[type(self.model)](outputs, truths, size, grid, anchors_key)
    loss = sum(value for name, value in reported.items() if name.endswith('_loss'))
    return loss, (reported, updated)

  def detect(
    self, variables: base.Variables, batch: base.Batch
  ) -> tuple[types.Detections, jax.Array]:
    """The objects of images, in pixels of their files, and whether scores are finite `[batch]`."""
    thresholds = dict(self.config.task.evaluation)
    size = batch['image_size']

    def run(model: nn.Module) -> tuple[dict[str, jax.Array], types.Detections]:
      outputs, features = model(batch['image'], image_size=size)
      return outputs, model.objects(
        outputs, features, batch['image'].shape[1:3], size, **thresholds
      )

    outputs, found = nn.apply(run, self.model)(variables)
    factors = batch['original_size'] / size
    factors = jnp.tile(factors[:, None, ::-1], 2).astype(found.boxes.dtype)
    return found.replace(boxes=found.boxes * factors), are_finite(outputs)

  def evaluate(self, variables: base.Variables, batch: base.Batch) -> base.Evaluation:
    """The number of images, and what was found in each."""
    found, finite = self.detect(variables, batch)
    fields = {name: getattr(found, name) for name in ('boxes', 'scores', 'labels')}
    if self.masks:
      fields['masks'] = found.masks
    return base.Evaluation(
      sums={
        'count': jnp.sum(batch['mask'], dtype=jnp.int32),
        'not_finite': jnp.sum(~finite & batch['mask'], dtype=jnp.int32),
      },
      examples=fields | {name: batch[name] for name in ('index', 'original_size')},
    )

  def reduce_examples(self, examples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """See `instances.to_rows`."""
    return instances.to_rows(examples)

  def evaluate_examples(
    self, variables: base.Variables, examples: Mapping[str, np.ndarray]
  ) -> dict[str, float]:
    """COCO's metrics of all detections."""
    source = self.examples(self.config.dataset.eval_split).source
    return instances.evaluate(examples, source, self.class_names, masks=self.masks)

  def review(
    self, evaluation: base.Evaluation, examples: Mapping[str, np.ndarray]
  ) -> review.Review:
    """Which classes are taken for which, and the images with the most missed and false boxes.

    Boxes are those that pictures show.
    """
    source = self.examples(self.config.dataset.eval_split).source
    shown = examples['score'] >= self.config.task.shown_score
    examples = examples | {
      name: examples[name][shown] for name in ('image', 'box', 'score', 'label')
    }
    truths, found, _ = instances.compared(examples, source, masks=False)
    return mistakes.review_of(truths, found, np.unique(examples['seen']), self.class_names)

  @property
  def _kinds(self) -> tuple[str, ...]:
    return ('box', 'mask') if self.masks else ('box',)

  @property
  def metric_modes(self) -> dict[str, str]:
    """All are to be high."""
    names = [*coco.NAMES, *(f'ap/{name}' for name in self.class_names)]
    return {f'{kind}_{name}': 'max' for kind in self._kinds for name in names}

  @property
  def main_metrics(self) -> list[str]:
    """What papers print first."""
    return [f'{kind}_{name}' for kind in self._kinds for name in ('ap', 'ap50', 'ap75')]

  @property
  def metric_words(self) -> dict[str, str]:
    """COCO's, of boxes and of masks."""
    return {
      f'{kind}_{name}': f'{_PLURALS[kind]}: {words}'
      for kind in self._kinds
      for name, words in coco.WORDS.items()
    }

  def metrics(self, evaluation: base.Evaluation) -> dict[str, float]:
    """COCO's metrics of boxes and masks, the AP of each class, and the number of images.

    Raises:
      ValueError: there is no object in the split, or outputs are not finite.
    """
    self.check_finite(evaluation.sums, 'outputs')
    count = int(evaluation.sums['count'])
    if not evaluation.examples:
      dataset = self.config.dataset
      raise ValueError(
        f'none of the {count} {self.Examples.kind}s of dataset {dataset.name!r}, split '
        f'{dataset.eval_split!r}, has an object, so that there is no average precision: evaluate '
        'on another split'
      )
    return evaluation.examples | {'examples': count}

  def summary(self, metrics: Mapping[str, Any]) -> list[str]:
    """COCO's table of boxes, and that of masks."""
    lines = []
    for kind in self._kinds:
      of_kind = {name: metrics.get(f'{kind}_{name}', -1) for name in coco.NAMES}
      lines += [f'{_PLURALS[kind]}:', coco.table(of_kind)]
    return lines


def are_finite(outputs: Mapping[str, jax.Array]) -> jax.Array:
  """Whether all outputs of an image are finite, `[batch]`."""
  finite = [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in outputs.values()]
  return jnp.all(jnp.stack(finite), axis=0)


def check_thresholds(config: ml_collections.ConfigDict) -> None:
  """Refuses scores, overlaps and numbers of boxes that cannot be, naming the keys."""
  options = config.task
  for key, value in (
    ('evaluation.score_threshold', options.evaluation.score_threshold),
    # Where queries find objects, none is found twice.
    ('evaluation.iou_threshold', options.evaluation.get('iou_threshold', 0)),
    ('shown_score', options.shown_score),
  ):
    if not 0 <= value <= 1:
      raise ValueError(f'config.task.{key} must be between 0 and 1, got {value}')
  if options.evaluation.max_boxes < 1:
    raise ValueError(
      f'config.task.evaluation.max_boxes must be at least 1, got {options.evaluation.max_boxes}'
    )


def check_classes(config: ml_collections.ConfigDict, model: nn.Module) -> None:
  """Refuses a model of another number of classes than the data set has."""
  count = len(config.dataset.class_names)
  # Without data, as where a step is only compiled, they have no names, or no number.
  if count and config.model.get('num_classes', model.num_classes) not in (None, count):
    base.check_num_classes(config, model.num_classes, count)


def _check_model(config: ml_collections.ConfigDict, model: nn.Module) -> None:
  """Refuses a model without a head, and one with masks that are not learnt or the reverse."""
  if type(model) not in _LOSSES:
    raise ValueError(
      f'config.model.name={config.model.name!r} does not find objects: add a head to a backbone, '
      f"as in 'crossformer_small+retinanet'; list_models('*+*') shows all"
    )
  predicts_masks = bool(getattr(model, 'mask_channels', 0))
  if predicts_masks != config.dataset.masks:
    raise config_errors.ConfigError(
      f'config.dataset.masks={config.dataset.masks}, but {config.model.name!r} '
      f'{"predicts masks" if predicts_masks else "predicts none"}; set config.dataset.masks='
      f'{predicts_masks}',
      {'dataset.masks': predicts_masks},
    )
