"""Semantic segmentation of point clouds: a class for every point; mean intersection over union.

It is the second stage of MIT (Yang et al. 2023, arXiv 2310.12817), whose labels may be those that
the first one made, and any other training of a network on voxels.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from crossattn_jax.data.scene_points import batches as data
from crossattn_jax.data.scene_points import sources
from crossattn_jax.layers import sparse_convolution as sparse
from crossattn_jax.metrics import segmentation as metrics
from crossattn_jax.models import minkunet
from crossattn_jax.tasks import base, review, scene_inputs
from crossattn_jax.tasks.point_segmentation import predictions, serving, voting
from crossattn_jax.tasks.segmentation import losses

# Label of what has no class that counts.
_IGNORED = -1


def default_config() -> ml_collections.ConfigDict:
  """The `task` and `dataset` sections of an experiment."""
  config = ml_collections.ConfigDict()
  config.task = ml_collections.ConfigDict(
    {
      'name': 'point_segmentation',
      # One weight per class, or none.
      'class_weights': (),
      'evaluation': {
        # Classes that neither labels nor predictions have: 'zero' counts their IoU as 0, as MIT's
        # authors do in training, 'skip' leaves them out of the mean.
        'absent_classes': 'skip',
      },
    }
  )
  config.dataset = data.default_config()
  return config


def complete_config(config: ml_collections.ConfigDict) -> list[str]:
  """Takes splits and classes from the data set; see `tasks.complete_config`.

  Where nobody labelled a point, what is left to measure by is what is learnt from.
  """
  dataset, is_open = config.dataset, config.dataset.eval_split is None
  notes = sources.complete(dataset)
  has_labels = data.SegmentationExamples.has_labels
  if is_open and dataset.labels_dir and not has_labels(dataset, dataset.eval_split):
    notes.append(
      f'points of {dataset.eval_split!r} have no labels: measured by those of dataset.labels_dir, '
      f'on {dataset.train_split!r}'
    )
    dataset.eval_split = dataset.train_split
  if config.model.num_classes is None:
    config.model.num_classes = len(config.dataset.class_names)
  return notes


class PointSegmentation(base.Task):
  """Assigns one of a fixed set of classes to every point of a scene.

  The network labels voxels; what is measured are the points of the files, each of which has the
  class of its voxel.
  """

  Examples = data.SegmentationExamples
  Predictor = predictions.Predictor
  Serving = serving.Serving

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__(config)
    _check(config, self.model)
    self.class_names = scene_inputs.class_names(config.dataset, self.model.num_classes)
    self._votes = voting.Votes(config.dataset.evaluation.votes)

  def check_data(self) -> None:
    """Refuses to be measured by scenes without labels; see `Task.check_data`."""
    examples = self.examples(self.config.dataset.eval_split)
    if (scene := examples.read(0)) is not None:
      _require_labels(scene, examples, 0)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The largest scenes, and a class for each voxel `[batch, N_0]`."""
    return data.batch_spec(self.config.dataset, batch_size, data.SEGMENTATION)

  def model_inputs(self, batch: base.Batch) -> tuple[jax.Array, tuple[sparse.Level, ...]]:
    """Colours around each voxel, and how voxels hang together."""
    return batch['windows'], scene_inputs.levels(batch)

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """The mean cross entropy of the voxels of all devices that have a class."""
    labels, weights = batch['labels'], self.config.task.class_weights
    (logits, _), updated = self.forward(variables, batch, jax.random.split(rng), train)
    loss = losses.cross_entropy(
      logits,
      labels,
      ignore_label=_IGNORED,
      class_weights=jnp.asarray(weights) if weights else None,
    )
    valid = labels != _IGNORED
    hits = jnp.sum((jnp.argmax(logits, axis=-1) == labels) & valid, dtype=jnp.float32)
    accuracy = hits / jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1)
    return loss, ({'accuracy': accuracy, 'padding': scene_inputs.padding(batch)}, updated)

  def logits(self, variables: base.Variables, batch: base.Batch) -> jax.Array:
    """Scores of the classes of each voxel `[batch, N_0, classes]`, in at least float32."""
    logits, _ = self.model.apply(variables, *self.model_inputs(batch))
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

  def eval_data(self, batch_size: int, block: int, num_blocks: int) -> grain.IterDataset:
    """See `Task.eval_data`; begins to count votes."""
    self._votes.clear()
    return super().eval_data(batch_size, block, num_blocks)

  def evaluate(self, variables: base.Variables, batch: base.Batch) -> base.Evaluation:
    """Scores of the voxels of each scene, and in how many looks at scenes they are not finite."""
    logits = self.logits(variables, batch)
    is_cell = scene_inputs.levels(batch)[0].is_cell
    finite = jnp.all(jnp.isfinite(logits).all(axis=-1) | ~is_cell, axis=-1)
    return base.Evaluation(
      sums={'not_finite': jnp.sum(~finite & batch['mask'], dtype=jnp.int32)},
      examples={'index': batch['index'], 'vote': batch['vote'], 'logits': logits},
    )

  def reduce_examples(self, examples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Points by true and predicted class `[scenes, classes, classes]`, of scenes that are complete.

    The points are those of the files, which are read once more: so nothing but this matrix is kept
    of a scene that all votes are there of.
    """
    source, num_classes = self.examples(self.config.dataset.eval_split), len(self.class_names)
    found, complete = [np.zeros((0, num_classes, num_classes), np.int64)], []
    rows = zip(
      examples['index'].tolist(), examples['vote'].tolist(), examples['logits'], strict=True
    )
    for index, vote, logits in rows:
      scene = source.scene(index)
      _require_labels(scene, source, index)
      scores = self._votes.add(index, logits[source.voxels(index, vote, scene).inverse])
      if scores is not None:
        matrix = metrics.host_confusion_matrix(scene.labels, scores.argmax(axis=-1), num_classes)
        found.append(matrix[None])
        complete.append(index)
    return {'confusion': np.concatenate(found), 'scene': np.array(complete, np.int64)}

  def evaluate_examples(
    self, variables: base.Variables, examples: Mapping[str, np.ndarray]
  ) -> dict[str, Any]:
    """The matrix of all points, and the number of scenes."""
    return {'confusion': examples['confusion'].sum(axis=0), 'count': len(examples['scene'])}

  def review(
    self, evaluation: base.Evaluation, examples: Mapping[str, np.ndarray]
  ) -> review.Review:
    """Which classes are taken for which, and the scenes with the most wrong points."""
    first_look = examples['scene'] * self.config.dataset.evaluation.votes
    return review.Review(
      review.Confusion(evaluation.examples['confusion'], self.class_names, 'points'),
      review.worst_matrices(first_look, examples['confusion']),
    )

  @property
  def metric_modes(self) -> dict[str, str]:
    """All are to be high."""
    names = ['mean_iou', 'mean_accuracy', 'overall_accuracy']
    return dict.fromkeys([*names, *(f'iou/{name}' for name in self.class_names)], 'max')

  @property
  def metric_words(self) -> dict[str, str]:
    """Shares of points."""
    return metrics.WORDS | {'overall_accuracy': 'share of points with the right class'}

  def metrics(self, evaluation: base.Evaluation) -> dict[str, float]:
    """Mean IoU, mean and overall accuracy, the number of scenes, and the IoU of each class.

    Raises:
      ValueError: no point has a class, or scores are not finite.
    """
    confusion, count = evaluation.examples['confusion'], evaluation.examples['count']
    if bad := int(evaluation.sums['not_finite']):
      raise ValueError(
        f'the network gives scores that are not finite, in {bad} looks at {count} scenes: its '
        'weights or its dtype are wrong'
      )
    if not np.any(confusion):
      dataset = self.config.dataset
      raise ValueError(
        f'none of the points of dataset {dataset.name!r}, split {dataset.eval_split!r}, has a '
        'class, so that there is no mean IoU: all of its labels say so'
      )
    absent = self.config.task.evaluation.absent_classes
    iou = metrics.intersection_over_union(confusion)
    return {
      'mean_iou': metrics.mean_over_classes(iou, absent),
      'mean_accuracy': metrics.mean_over_classes(metrics.class_accuracy(confusion), absent),
      'overall_accuracy': metrics.pixel_accuracy(confusion),
      'examples': count,
      **metrics.named_classes(iou, self.class_names),
    }

  def summary(self, values: Mapping[str, float]) -> list[str]:
    """A table of the IoU of each class, and the means; a dash is a class that does not occur."""
    totals = {'mean IoU': 'mean_iou', 'mean accuracy': 'mean_accuracy'}
    totals['overall accuracy'] = 'overall_accuracy'
    return [metrics.table(values, self.class_names, totals)]


def _require_labels(scene: sources.Scene, examples: data.SegmentationExamples, index: int) -> None:
  if scene.labels is None:
    raise ValueError(
      f'{examples.describe(index)} of dataset.eval_split={examples.split!r} has no labels to '
      'measure by; name a split that has, or the train_split with dataset.labels_dir'
    )


def _check(config: ml_collections.ConfigDict, model: nn.Module) -> None:
  """Refuses what does not belong together or cannot be, naming the key."""
  absent = config.task.evaluation.absent_classes
  if not isinstance(model, minkunet.MinkUNet):
    raise ValueError(
      f'config.model.name={config.model.name!r} does not label points; '
      "list_models('minkunet*') shows what does"
    )
  names = scene_inputs.class_names(config.dataset, model.num_classes)
  base.check_num_classes(config, model.num_classes, len(names))
  if absent not in ('zero', 'skip'):
    raise ValueError(f'config.task.evaluation.absent_classes={absent!r} is not one of zero, skip')
  base.check_class_weights(config, len(names))
