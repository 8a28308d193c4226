"""What scenes hold, where it is, and what photographs look at in them."""

import collections
from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.data import levels
from crossattn_jax.data import sources as data_sources
from crossattn_jax.data.scene_points import batches as data
from crossattn_jax.data.scene_points import folder, sources
from crossattn_jax.tasks import base, predictor
from crossattn_jax.tasks.scene_labels import pictures, pseudo_labels


@dataclasses.dataclass(frozen=True)
class Shown:
  """A scene as its file has it, and as the network sees it.

  Attributes:
    scene: its points.
    voxels: they are in.
    row: of a batch.
  """

  scene: sources.Scene
  voxels: data.Voxelized
  row: predictor.Row


class Predictor(predictor.FilePredictor):
  """Writes which classes scenes hold; draws which of them is where, and what is looked at.

  What a scene holds is not known here: supervoxels get one of the classes that are found in it.
  """

  extensions = folder.EXTENSIONS
  expected = 'a scene with photographs in the folder of its name, or a folder with scenes'
  fields = (predictor.Field('points', 'file', 'Points with photographs', folder.EXTENSIONS),)
  num_samples = 4
  draw = predictor.with_class_names(pictures.scene)
  draw_sheet = predictor.with_class_names(pictures.sheet)

  @classmethod
  def find_inputs(
    cls, given: epath.Path, apart_from: epath.Path | None = None
  ) -> tuple[list[predictor.Input], collections.Counter[str]]:
    """See `Predictor.find_inputs`; photographs are part of scenes."""
    inputs, others = super().find_inputs(given, apart_from)
    for extension in data_sources.IMAGE_EXTENSIONS:
      others.pop(extension, None)
    return inputs, others

  def load(self, source: predictor.Input) -> predictor.Loaded:
    """The points of a file, and the photographs beside it."""
    (path,) = source.paths
    opened = folder.open_file(path, self.task.class_names)
    examples = data.SceneLabelExamples(self.task.config.dataset, 'input', opened)
    scene = examples.scene(0)
    row = examples.eval_example(scene, 0, examples.eval_bucket(scene, 0))
    example = {name: x for name, x in row.items() if name not in ('index', 'tags')}
    return predictor.Loaded(example, Shown(scene, examples.voxels(0, scene=scene), row))

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """What the model says.

    Returns:
      See `SceneLabels.say`; of models that see photographs 'view_probabilities' `[batch, views,
      classes]`, and of those that see both 'looks', see `looks_at_supervoxels`.
    """
    outputs, features = self.task.model.apply(variables, *self.task.model_inputs(batch))
    said = self.task.say(outputs)
    if 'view_cams' in outputs:
      said['view_probabilities'] = jax.nn.sigmoid(outputs['view_cams'])
    if 'attention_0' in features:
      said['looks'] = looks_at_supervoxels(self.task.model, features, batch['num_tokens'])
    return said

  def record(
    self, shown: Shown, result: predictor.Row, files: Mapping[str, epath.Path]
  ) -> predictor.Record:
    """The classes that are found, the likeliest first; and how many points have which label."""
    names, probabilities = self.task.class_names, result['probabilities']
    found = [
      {'name': names[index], 'probability': round(float(probabilities[index]), 4)}
      for index in np.argsort(-probabilities, kind='stable')
      if probabilities[index] >= 0.5
    ]
    record = {'classes': found, 'points': len(shown.scene.points)}
    if self.task.sees_points:
      labels = self._labels(shown, result, probabilities >= 0.5)
      counts = np.bincount(labels[labels >= 0], minlength=len(names))
      record['labels'] = {names[index]: int(counts[index]) for index in np.flatnonzero(counts)}
    return record

  def sample(self, shown: Shown, result: predictor.Row) -> pictures.Sample:
    """A scene, its classes, and what is looked at."""
    return self._sample(shown, result, result['probabilities'] >= 0.5)

  def evaluation_sample(self, example: predictor.Row, result: predictor.Row) -> pictures.Sample:
    """The same with its pseudo labels, for which its tags are known, and the truth."""
    examples = self.task.examples(self.task.config.dataset.eval_split)
    index = int(example['index'])
    scene = examples.scene(index)
    shown = Shown(scene, examples.voxels(index, scene=scene), example)
    sample = self._sample(shown, result, example['tags'] > 0)
    return dataclasses.replace(sample, true=scene.labels, name=examples.source.keys[index])

  def _labels(self, shown: Shown, result: predictor.Row, held: np.ndarray) -> np.ndarray:
    """Of points, among the classes that a scene holds."""
    return pseudo_labels.of_points(
      pseudo_labels.supervoxel_labels(
        result['cams'][: shown.row['num_tokens']],
        held,
        self.task.config.task.pseudo_labels.threshold,
      ),
      shown.row['supervoxel'],
      shown.voxels,
    )

  def _sample(self, shown: Shown, result: predictor.Row, held: np.ndarray) -> pictures.Sample:
    fields: dict[str, Any] = {}
    if self.task.sees_points:
      fields['classes'] = self._labels(shown, result, held)
    if 'images' in shown.row:
      fields['photographs'] = levels.denormalize(shown.row['images'], self.task.config.dataset)
    if 'looks' in result:
      looks = pseudo_labels.of_points(result['looks'].T, shown.row['supervoxel'], shown.voxels).T
      count = len(self.task.class_names)
      fields['views_look'], order = looks[count:], np.argsort(-result['probabilities'])
      fields['classes_look'] = {
        self.task.class_names[index]: looks[index] for index in order if held[index]
      }
    return pictures.Sample(shown.scene.points, shown.scene.colors, **fields)


def looks_at_supervoxels(
  model: Any, features: Mapping[str, jax.Array], num_tokens: jax.Array
) -> jax.Array:
  """How much the tokens of the images look at each supervoxel, the mean over heads and blocks.

  Args:
    model: an `MIT`.
    features: that it returned.
    num_tokens: `[batch]`, supervoxels of each scene.

  Returns:
    `[batch, classes + views, supervoxels]`, 1 where a token looks at all of them alike.
  """
  count, first = model.num_classes, 0 if model.first_query == 'views' else 1
  looks = []
  for block in range(first, model.decoder_depth, 2):
    logits = features[f'attention_{block}'][..., count:]
    is_token = jnp.arange(logits.shape[-1]) < num_tokens[:, None, None, None]
    looks.append(jax.nn.softmax(jnp.where(is_token, logits, -jnp.inf)).mean(axis=1))
  return sum(looks) / len(looks) * num_tokens[:, None, None]
