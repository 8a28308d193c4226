"""Which classes a scene holds, learnt from its tags; and thereby which of them is where in it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data.scene_points import batches as data
from crossattn_jax.data.scene_points import sources
from crossattn_jax.metrics import average_precision, segmentation
from crossattn_jax.models import mit
from crossattn_jax.tasks import base, multi_label, predictor, review, scene_inputs
from crossattn_jax.tasks.scene_labels import losses, predictions, pseudo_labels, serving

# What a scene is said to hold by, in this order: of whichever outputs a model has.
_SCORES = ('cross', 'voxel_class', 'view_class', 'view_cam', 'voxel_cam')


def default_config() -> ml_collections.ConfigDict:
  """The `task` and `dataset` sections of an experiment."""
  config = ml_collections.ConfigDict()
  config.task = ml_collections.ConfigDict(
    {
      'name': 'scene_labels',
      # Of the losses of whichever outputs a model has; see `losses.scene_losses`.
      'loss_weights': {
        # Class tokens after the decoder.
        'cross': 1.0,
        # Class tokens of the photographs.
        'view_class': 1.0,
        # Class tokens of the points.
        'voxel_class': 1.0,
        # What the photographs show, by their class activation maps.
        'view_cam': 1.0,
        # What the points are, by theirs.
        'voxel_cam': 1.0,
        # That a class token looks at that of its own class in the other modality.
        'token_similarity': 1.0,
        # The paper's alpha.
        'consistency': 1.0,
      },
      'pseudo_labels': {
        # Supervoxels that show no class of their scene as much have no label.
        'threshold': 0.5,
        # In each of so many consecutive scenes, the classes of all of them get a supervoxel. 1:
        # those of the scene itself; the authors' code takes those of a batch, of 4.
        'together': 1,
      },
    }
  )
  config.dataset = data.default_config()
  return config


def complete_config(config: ml_collections.ConfigDict) -> list[str]:
  """Takes splits and classes from the data; see `tasks.complete_config`.

  Where nobody says otherwise, pseudo labels are measured on the scenes that are learnt from: these
  are what they are made for. Where no point has a label, there is no measuring them: then tags say
  which checkpoint is best.
  """
  dataset, is_open = config.dataset, config.dataset.eval_split is None
  notes = sources.complete(dataset)
  if is_open:
    dataset.eval_split = dataset.train_split
    notes.append(f'measured on the scenes that are learnt from, {dataset.train_split!r}')
  if config.model.get('num_classes', 0) is None:
    config.model.num_classes = len(config.dataset.class_names)
  has_labels = data.SceneLabelExamples.has_labels
  if config.checkpoint.best_metric is None and not has_labels(dataset, dataset.eval_split):
    config.checkpoint.best_metric = 'mean_average_precision'
    notes.append(
      f'points of {dataset.eval_split!r} have no labels: the best checkpoint has the highest '
      f'{config.checkpoint.best_metric} of tags'
    )
  return notes


class SceneLabels(base.Task):
  """Tells the classes of scenes from points and photographs, knowing no more than such sets.

  By the class activations of supervoxels it also says where they are: pseudo labels, from which
  another network learns to segment. How good these are is measured where the truth is known, on
  the scenes that were learnt from.
  """

  Examples = data.SceneLabelExamples
  Predictor = predictions.Predictor
  Serving = serving.Serving
  Labels = pseudo_labels.Writer

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__(config)
    _check(config, self.model)
    self.class_names = scene_inputs.class_names(config.dataset, self.model.num_classes)
    if not self.sees_points:
      self.Labels = None

  @property
  def sees_points(self) -> bool:
    """Whether the model says what supervoxels are."""
    return hasattr(self.model, 'points_widths')

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Voxels, their neighbours and supervoxels, photographs and tags."""
    spec = data.batch_spec(self.config.dataset, batch_size, data.SCENE_LABELS)
    tags = jax.ShapeDtypeStruct((batch_size, len(self.class_names)), spec['tags'].dtype)
    return spec | {'tags': tags}

  def model_inputs(self, batch: base.Batch) -> tuple[Any, ...]:
    """Points, which supervoxels they are in and where these are, and photographs; what there is."""
    names = ('supervoxel', 'num_tokens', 'position', 'images')
    return batch.get('windows'), scene_inputs.levels(batch), *map(batch.get, names)

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """The weighted sum of the losses of what the model has, each the mean over the scenes."""
    (outputs, _), updated = self.forward(variables, batch, jax.random.split(rng), train)
    parts = {
      name: jnp.mean(values) for name, values in losses.scene_losses(outputs, batch['tags']).items()
    }
    loss = losses.total(parts, self.config.task.loss_weights)
    reported = {f'{name}_loss': value for name, value in parts.items()}
    return loss, (reported | {'padding': scene_inputs.padding(batch)}, updated)

  # How well it is learnt.

  def evaluate(self, variables: base.Variables, batch: base.Batch) -> base.Evaluation:
    """Losses, and what is said of each scene and of its supervoxels."""
    outputs, _ = self.model.apply(variables, *self.model_inputs(batch))
    mask, tags = batch['mask'], batch['tags']
    parts = losses.scene_losses(outputs, tags)
    loss = losses.total(parts, self.config.task.loss_weights)
    said = self.say(outputs)
    return base.Evaluation(
      sums={
        'count': jnp.sum(mask, dtype=jnp.int32),
        'not_finite': jnp.sum(~jnp.isfinite(loss) & mask, dtype=jnp.int32),
        'loss': jnp.sum(jnp.where(mask, loss, 0)),
      },
      examples=said | {name: batch[name] for name in ('index', 'tags', 'supervoxel', 'num_tokens')},
    )

  def say(self, outputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What a model's outputs say.

    Returns:
      'probabilities' `[batch, classes]` that a scene holds a class; and, of models that see points,
      'cams' `[batch, supervoxels, classes]` in [0, 1].
    """
    scores = {}
    for key, values in outputs.items():
      name, _, kind = key.rpartition('_')
      if kind in ('logits', 'probabilities'):
        scores[name] = values if kind == 'probabilities' else jax.nn.sigmoid(values)
    said = {'probabilities': next(scores[name] for name in _SCORES if name in scores)}
    if 'cams' in outputs:
      are_logits = 'voxel_cam_logits' in outputs
      said['cams'] = jax.nn.sigmoid(outputs['cams']) if are_logits else outputs['cams']
    return said

  def reduce_examples(self, examples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What was said of each scene, and its points by true class and by pseudo label.

    The last class of these is none: points without a pseudo label are wrong.
    """
    kept = {name: examples[name] for name in ('index', 'probabilities', 'tags')}
    if not self.sees_points:
      return kept
    source = self.examples(self.config.dataset.eval_split)
    count = len(self.class_names) + 1
    confusion = np.zeros((len(examples['index']), count, count), np.int64)
    for row in range(len(confusion)):
      said = predictor.row_of(examples, row)
      scene, labels = pseudo_labels.of_scene(said, source, self.config.task.pseudo_labels)
      if scene.labels is not None:
        confusion[row] = pseudo_labels.compare(scene.labels, labels, len(self.class_names))
    return kept | {'confusion': confusion}

  def review(
    self, evaluation: base.Evaluation, examples: Mapping[str, np.ndarray]
  ) -> review.Review:
    """Of points which classes are taken for which, else of tags; the worst scenes by the same."""
    index, confusion = examples['index'], examples.get('confusion', np.zeros((1, 1, 1))).sum(0)
    if confusion.any():
      columns = (*self.class_names, 'no label')
      return review.Review(
        review.Confusion(confusion[:-1], self.class_names, 'points', columns),
        review.worst_matrices(index, examples['confusion']),
      )
    found, true = examples['probabilities'] >= 0.5, examples['tags'] > 0
    wrong = (found != true).sum(axis=1)
    return review.Review(
      multi_label.confusion(found, true, self.class_names),
      review.worst(index, wrong, lambda row: f'{wrong[row]} tags wrong'),
    )

  @property
  def metric_modes(self) -> dict[str, str]:
    """Of models that see points, the mean IoU of pseudo labels is the usual one."""
    names = ['mean_average_precision', 'tag_accuracy']
    if self.sees_points:
      names = ['pseudo_miou', 'pseudo_accuracy', 'labelled', *names]
      names += [f'iou/{name}' for name in self.class_names]
    return dict.fromkeys(names, 'max') | {'loss': 'min'}

  @property
  def metric_words(self) -> dict[str, str]:
    """Shares of points and of tags, and the loss."""
    return {
      'pseudo_miou': 'points in both, truth and pseudo label, over points in either; mean over '
      'classes',
      'pseudo_accuracy': 'share of points whose pseudo label is the true class',
      'labelled': 'share of points that have a pseudo label',
      'mean_average_precision': 'how well scores put scenes with a class first, mean over classes; '
      '1 is best',
      'tag_accuracy': 'share of answers, does a scene hold a class, that are right',
      'iou/*': 'IoU of {} alone',
      'loss': 'the weighted sum of all losses, mean over scenes',
    }

  def metrics(self, evaluation: base.Evaluation) -> dict[str, float]:
    """How good pseudo labels and tags are, and the mean loss.

    Returns:
      Where points have true labels and the model sees them: 'pseudo_miou', 'iou/CLASS' and
      'pseudo_accuracy' of pseudo labels over points, and 'labelled', the share that has any.
      'mean_average_precision' of tags; 'tag_accuracy', the share that is right at a probability of
      a half; 'loss'; 'examples', the number of scenes.

    Raises:
      ValueError: scores are not finite.
    """
    sums, count = evaluation.sums, int(evaluation.sums['count'])
    self.check_finite(sums)
    probabilities, tags = evaluation.examples['probabilities'], evaluation.examples['tags'] > 0
    results = {}
    if 'confusion' in evaluation.examples:
      results = pseudo_labels.metrics_of(evaluation.examples['confusion'].sum(0), self.class_names)
    return results | {
      'mean_average_precision': average_precision.mean_average_precision(probabilities, tags),
      'tag_accuracy': float(((probabilities >= 0.5) == tags).mean()),
      'loss': float(sums['loss']) / count,
      'examples': count,
    }

  def summary(self, values: Mapping[str, float]) -> list[str]:
    """A table of the IoU of the pseudo labels of each class, where the truth is known."""
    if 'pseudo_miou' not in values:
      return []
    totals = {'mean IoU': 'pseudo_miou', 'accuracy': 'pseudo_accuracy', 'labelled': 'labelled'}
    table = segmentation.table(values, self.class_names, totals)
    return [f'pseudo labels:\n{table}']


def _check(config: ml_collections.ConfigDict, model: Any) -> None:
  """Refuses what does not belong together, naming the keys."""
  if not isinstance(model, (mit.MIT, mit.MITPoints, mit.MITImages)):
    raise ValueError(
      f'config.model.name={config.model.name!r} does not tell the classes of scenes; '
      "list_models('mit*') shows what does"
    )
  dataset, options = config.dataset, config.task.pseudo_labels
  num_classes = len(scene_inputs.class_names(dataset, model.num_classes))
  for field, count, what in (
    ('num_classes', num_classes, f'{num_classes} classes'),
    ('num_views', dataset.num_views, f'dataset.num_views={dataset.num_views} photographs'),
  ):
    own = getattr(model, field, count)
    if own != count:
      raise config_errors.ConfigError(
        f'config.model.{field} is {own}, but scenes of dataset {dataset.name!r} have {what}; set '
        f'config.model.{field}={count}',
        {f'model.{field}': count},
      )
  if not 0 <= options.threshold <= 1:
    raise ValueError(
      f'config.task.pseudo_labels.threshold={options.threshold} must be between 0 and 1'
    )
  if options.together < 1:
    raise ValueError(
      f'config.task.pseudo_labels.together={options.together} must be a number of scenes'
    )
