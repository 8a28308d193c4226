"""Object detection in pairs of aligned images, RGB and thermal; what papers of them report."""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_dict
import numpy as np

from crossattn_jax import models
from crossattn_jax.data.paired_detection import batches as data
from crossattn_jax.data.paired_detection import sources
from crossattn_jax.geometry import anchor_sizes
from crossattn_jax.geometry import boxes as box_ops
from crossattn_jax.heads.detection import types
from crossattn_jax.metrics import miss_rate, yolo
from crossattn_jax.models import icafusion
from crossattn_jax.models.icafusion import attention_maps
from crossattn_jax.tasks import base
from crossattn_jax.tasks.detection import instances, yolo_losses
from crossattn_jax.tasks.detection import task as detection
from crossattn_jax.tasks.paired_detection import miss_rates, predictions, serving

REDUCTIONS = ('sum', 'mean')


def default_config() -> ml_collections.ConfigDict:
  """The `task` and `dataset` sections of an experiment of paired detection."""
  config = ml_collections.ConfigDict()
  config.task = ml_collections.ConfigDict(
    {
      'name': 'paired_detection',
      # YOLOv5's; see `yolo_losses.yolo_losses`.
      'loss': {
        # Weight of the loss of boxes.
        'box': 0.05,
        # Weight of the loss of objectness, for images of 640 pixels.
        'objectness': 1.0,
        # Weight of the loss of classes, for 80 of them.
        'classes': 0.5,
        # An anchor learns objects whose sides are less than so many times its own, or it theirs.
        'max_ratio': 4.0,
        # Weights of the levels' objectness, finest first.
        'balance': (4.0, 1.0, 0.4),
        # How much of an anchor's objectness is the IoU; the rest is 1.
        'iou_share': 1.0,
        # The class is 1 - half of it, others are half of it.
        'label_smoothing': 0.0,
        # Of the focal loss; 0 for cross-entropy.
        'gamma': 0.0,
        # Of what is an object, in the cross entropy.
        'objectness_weight': 1.0,
        # Of what is the class, in the cross entropy.
        'class_weight': 1.0,
        # Over the pairs of a batch: 'sum', for which YOLOv5's learning rates are, or 'mean'.
        'reduction': 'sum',
      },
      # Where the model's anchors can learn a smaller share of the training objects, others are
      # computed from these: `config.model.anchor_sizes`. 0: never.
      'min_anchor_recall': 0.98,
      'evaluation': {
        # Detections with a lower score are none.
        'score_threshold': 0.001,
        # A box leaves that overlaps a better one of its class by more.
        'iou_threshold': 0.5,
        # Of a pair.
        'max_boxes': 300,
        # Pairs of a box and a class that compete.
        'max_candidates': 30_000,
        # Whether a box competes with every class, or with its best one.
        'multi_label': True,
        # Whether boxes of different classes suppress each other too.
        'agnostic': False,
      },
      # KAIST's miss rates, where the pairs are those of its test set.
      'miss_rate': {
        # JSON file of the improved annotations. None: no miss rates.
        'annotations': config_dict.placeholder(str),
        # The first so many pairs were taken by day.
        'day_pairs': 1455,
        # Whether the faults of the script that published numbers are from are repeated.
        'official': True,
      },
      # Least score of what pictures and records of predictions show; files have all detections.
      'shown_score': 0.3,
      # Of how many objects, best first, pictures show where they look in the other image.
      'shown_attention': 1,
      # Whether predictions are also written as KAIST's tools take them, `detections.txt`.
      'kaist_file': False,
    }
  )
  config.dataset = data.default_config()
  return config


def complete_config(config: ml_collections.ConfigDict) -> list[str]:
  """Takes splits, classes and anchors from the data set; see `tasks.complete_config`."""
  return detection.complete_config(config, sources) + _complete_anchors(config)


def _complete_anchors(config: ml_collections.ConfigDict) -> list[str]:
  """Sets the model's anchors, where they are None: its own, or such as suit the data."""
  model = models.create_model(**config.model)
  if config.model.get('anchor_sizes') is not None or not hasattr(model, 'anchor_sizes'):
    return []
  sizes, least, notes = model.anchor_sizes, config.task.min_anchor_recall, []
  if least > 0:
    boxes = data.Examples(config.dataset, config.dataset.train_split).learnt_sizes()
    options = {'min_recall': least, 'max_ratio': config.task.loss.max_ratio}
    try:
      sizes = anchor_sizes.suitable(boxes, sizes, config.seed, **options)
    except ValueError as error:
      notes = [f"the model's own anchors are kept: {error}"]
  with config.unlocked():
    config.model.anchor_sizes = sizes
  if sizes != model.anchor_sizes:
    shown = ', '.join(f'{width:g} x {height:g}' for level in sizes for width, height in level)
    notes = [f'anchors are of the sizes of the training objects, width x height: {shown}']
  return notes


class PairedDetection(detection.Detection):
  """Finds the objects that two aligned images show together."""

  Examples = data.Examples
  Predictor = predictions.Predictor
  Serving = serving.Serving

  def check_options(self) -> None:
    """Refuses what does not belong together or cannot be, naming the keys."""
    config, options = self.config, self.config.task
    if not isinstance(self.model, icafusion.ICAFusion):
      raise ValueError(
        f'config.model.name={config.model.name!r} does not find objects in pairs of images; '
        "list_models('icafusion*') shows what does"
      )
    detection.check_thresholds(config)
    detection.check_classes(config, self.model)
    if options.loss.reduction not in REDUCTIONS:
      raise ValueError(
        f'config.task.loss.reduction={options.loss.reduction!r} is not one of '
        f'{", ".join(REDUCTIONS)}'
      )
    if options.shown_attention < 0:
      raise ValueError(
        f'config.task.shown_attention must be at least 0, got {options.shown_attention}'
      )

  def check_data(self) -> None:
    """Refuses annotations for KAIST's miss rates of other pairs than those to be evaluated.

    Raises:
      ValueError: as `miss_rates.read`.
    """
    if self._has_miss_rates:
      _ = self._people

  @property
  def _has_miss_rates(self) -> bool:
    return bool(self.config.task.miss_rate.annotations)

  @functools.cached_property
  def _people(self) -> miss_rate.Pedestrians:
    """Who is in the pairs that are evaluated, to KAIST's miss rates."""
    source = self.examples(self.config.dataset.eval_split).source
    return miss_rates.read(self.config.task.miss_rate.annotations, source)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Both images `[batch, height, width, 3]` in 0..1, and their padded objects."""
    return data.batch_spec(self.config.dataset, batch_size)

  def model_inputs(self, batch: base.Batch) -> tuple[jax.Array, jax.Array]:
    """Both images."""
    return batch['rgb'], batch['thermal']

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """YOLOv5's losses, means over the batch, and their sum, times the pairs of a batch or not."""
    (outputs, _), updated = self.forward(variables, batch, jax.random.split(rng), train)
    options = dict(self.config.task.loss)
    weights = {name: options.pop(name) for name in ('box', 'objectness', 'classes')}
    # Of all of a batch, of which this may be a part: the loop takes the mean of the parts.
    scale = self.config.batch_size if options.pop('reduction') == 'sum' else 1
    grid = self.model.anchors().of_input(self.canvas)
    truths = types.Truths(batch['boxes'], batch['labels'])
    reported = yolo_losses.yolo_losses(
      outputs,
      yolo_losses.assign(truths, grid, options.pop('max_ratio')),
      grid,
      gains=yolo_losses.scaled_gains(self.model.num_classes, self.canvas, **weights),
      **options,
    )
    return scale * sum(reported.values()), (reported, updated)

  def find(
    self, variables: base.Variables, batch: base.Batch, attention: int = 0
  ) -> tuple[types.Detections, jax.Array, dict[str, jax.Array]]:
    """What pairs show, in pixels of their arrays.

    Args:
      variables: of the model.
      batch: 'rgb' and 'thermal'.
      attention: of how many objects, best first, it is to be said where they look.

    Returns:
      The objects, whether scores are finite `[batch]`, and what `attention_maps.of_anchors`
      returns, where the model has such attention.
    """
    (outputs, _), state = self.model.apply(
      variables,
      *self.model_inputs(batch),
      mutable=['intermediates'],
      capture_intermediates=attention_maps.is_shown,
    )
    size = batch['rgb'].shape[1:3]
    found = self.model.decode(outputs, size, **self.config.task.evaluation)
    looks = {}
    if attention:
      looks = attention_maps.of_anchors(
        self.model, state.get('intermediates', {}), size, found.anchors[:, :attention]
      )
    return found, detection.are_finite(outputs), looks

  def detect(
    self, variables: base.Variables, batch: base.Batch
  ) -> tuple[types.Detections, jax.Array]:
    """The objects of pairs, in pixels of their files, and whether scores are finite `[batch]`."""
    found, finite, _ = self.find(variables, batch)
    return self.in_files(found, batch), finite

  def in_files(self, found: types.Detections, batch: base.Batch) -> types.Detections:
    """Objects in pixels of arrays as those of the files, within these.

    Args:
      found: in pixels of the arrays.
      batch: 'offset', 'scale' and 'original_size', as evaluation has them.
    """
    dtype = found.boxes.dtype
    corner = jnp.tile(batch['offset'][:, None, ::-1], 2).astype(dtype)
    boxes = (found.boxes - corner) / batch['scale'][:, None, None].astype(dtype)
    boxes = box_ops.clip(boxes, batch['original_size'][:, None])
    return found.replace(boxes=jnp.where(found.labels[..., None] >= 0, boxes, 0))

  def evaluate_examples(
    self, variables: base.Variables, examples: Mapping[str, np.ndarray]
  ) -> dict[str, float]:
    """YOLOv5's and COCO's metrics of all detections, and KAIST's where they are wanted."""
    source = self.examples(self.config.dataset.eval_split).source
    truths, found, sizes = instances.compared(examples, source, masks=False)
    metrics = yolo.evaluate(truths, found, self.class_names)
    if metrics and self._has_miss_rates:
      options = self.config.task.miss_rate
      metrics |= miss_rates.evaluate(examples, self._people, len(source), options)
    return metrics | instances.coco_metrics(truths, found, sizes, self.class_names)

  @property
  def metric_modes(self) -> dict[str, str]:
    """All but miss rates are to be high."""
    names = [*yolo.NAMES, *(f'{x}/{name}' for name in self.class_names for x in yolo.NAMES)]
    modes = dict.fromkeys(names, 'max') | super().metric_modes
    if self._has_miss_rates:
      modes |= dict.fromkeys(miss_rates.NAMES, 'min')
    return modes

  @property
  def main_metrics(self) -> list[str]:
    """YOLOv5's, and KAIST's of all people."""
    return [*yolo.NAMES, *(['miss_rate/all'] if self._has_miss_rates else [])]

  @property
  def metric_words(self) -> dict[str, str]:
    """YOLOv5's, COCO's, and KAIST's."""
    missed = 'log-average share of people missed at 0.01 to 1 false boxes a pair; setting {}'
    return yolo.WORDS | super().metric_words | {'miss_rate/*': missed}

  def summary(self, metrics: Mapping[str, Any]) -> list[str]:
    """YOLOv5's table and COCO's, and KAIST's miss rates."""
    lines = [yolo.table(metrics, self.class_names), *super().summary(metrics)]
    if self._has_miss_rates:
      lines.append(miss_rates.line(metrics))
    return lines
