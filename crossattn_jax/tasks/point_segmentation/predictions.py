"""What a network that labels points makes of scans of rooms, and of evaluation scenes."""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import os
import pathlib

from etils import epath
import jax
import numpy as np

from crossattn_jax.data.scene_points import batches as data
from crossattn_jax.data.scene_points import point_files, sources
from crossattn_jax.tasks import base, point_pictures, predictor
from crossattn_jax.tasks.point_segmentation import pictures

# How ScanNet's files are called whose vertices its test server asks for.
_SCAN = '_vh_clean_2.ply'


@dataclasses.dataclass(frozen=True)
class Shown:
  """What a file holds.

  Attributes:
    name: of the file.
    scene: its points.
    inverse: the voxel of each point, `[points]` for each look.
  """

  name: str
  scene: sources.Scene
  inverse: Sequence[np.ndarray]


class Predictor(predictor.FilePredictor):
  """Writes the classes of points: as labels, as coloured clouds, as pages and pictures of these.

  `labels/NAME.txt` has a line for each point, in the file's order: its class as the data set's
  files call it, which is what ScanNet's test server takes. `clouds/NAME.ply` has the points in the
  colours of their classes, `pages/NAME.html` lets them be turned with the mouse.
  """

  extensions = point_files.EXTENSIONS
  expected = 'a file of coloured points, or a folder with such files'
  fields = (predictor.Field('points', 'file', 'Points with colours', point_files.EXTENSIONS),)
  suffixes = {'labels': '.txt', 'clouds': '.ply', 'pages': '.html'}
  num_samples = 8
  draw = predictor.with_class_names(pictures.overview)
  draw_sheet = predictor.with_class_names(pictures.sheet)

  @classmethod
  def check(cls, task: base.Task) -> list[str]:
    """Says what is left out without plotly."""
    del task
    if point_pictures.can_be_turned():
      return []
    return [
      'clouds cannot be turned with the mouse, as plotly is not installed: no pages are written; '
      "pip install 'crossattn_jax[points]' for these"
    ]

  @property
  def kinds(self) -> Sequence[str]:
    """Without pages where plotly is not installed."""
    return [kind for kind in self.suffixes if kind != 'pages' or point_pictures.can_be_turned()]

  @classmethod
  def find_inputs(
    cls, given: epath.Path, apart_from: epath.Path | None = None
  ) -> tuple[list[predictor.Input], collections.Counter[str]]:
    """See `Predictor.find_inputs`; of scans of ScanNet their meshes, by the names of the scans."""
    inputs, left_out = super().find_inputs(given, apart_from)
    scans = [path for source in inputs for path in source.paths if path.endswith(_SCAN)]
    if not scans:
      return inputs, left_out
    left_out['.ply'] += len(inputs) - len(scans)
    names = [os.path.basename(path).removesuffix(_SCAN) for path in scans]
    return [predictor.Input(*each) for each in zip(names, zip(scans), strict=True)], left_out

  def load(self, source: predictor.Input) -> predictor.Loaded:
    """All looks at a file, along a leading axis."""
    config, (path,) = self.task.config.dataset, source.paths
    scene = point_files.read(path)._replace(labels=None)
    opened = sources.MemorySource([scene], self.task.class_names)
    examples = data.SegmentationExamples(config, 'input', opened)
    bucket, looks = examples.eval_bucket(scene, 0), range(config.evaluation.votes)
    rows = [examples.eval_example(scene, look, bucket) for look in looks]
    example = jax.tree.map(lambda *each: np.stack(each), *rows)
    inverse = [examples.voxels(0, look, scene).inverse for look in looks]
    return predictor.Loaded(example, Shown(pathlib.Path(path).name, scene, inverse))

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Scores of voxels: `logits` `[batch, N_0, classes]`, or `[batch, looks, N_0, classes]`."""
    before = batch['windows'].shape[:-2]
    flat = {name: x.reshape(-1, *x.shape[len(before) :]) for name, x in batch.items()}
    logits = self.task.logits(variables, flat)
    return {'logits': logits.reshape(*before, *logits.shape[1:])}

  def record(
    self, shown: Shown, result: predictor.Row, files: Mapping[str, epath.Path]
  ) -> predictor.Record:
    """The share of each class; writes labels, coloured points, and a page."""
    task, scene, classes = self.task, shown.scene, _classes(shown, result)
    names = task.class_names
    values = np.array(task.config.dataset.class_values or range(len(names)))
    files['labels'].write_text('\n'.join(map(str, values[classes].tolist())) + '\n')
    colors = point_pictures.palette(len(names))[classes]
    colored = sources.Scene(scene.points, colors, values[classes], faces=scene.faces)
    point_files.write_ply(files['clouds'], colored)
    if 'pages' in files:
      point_pictures.page(files['pages'], scene.points, scene.colors, classes, names, shown.name)
    return {'points': len(classes), 'classes': predictor.class_shares(classes, names)}

  def sample(self, shown: Shown, result: predictor.Row) -> pictures.Sample:
    """A cloud with its classes, and those that the file says, if it does."""
    scene = shown.scene
    return pictures.Sample(scene.points, scene.colors, _classes(shown, result), scene.labels)

  def evaluation_sample(self, example: predictor.Row, result: predictor.Row) -> pictures.Sample:
    """The same of one look at an evaluation scene."""
    examples = self.task.examples(self.task.config.dataset.eval_split)
    index, vote = int(example['index']), int(example['vote'])
    scene = examples.scene(index)
    inverse = [examples.voxels(index, vote, scene).inverse]
    shown = Shown(examples.source.keys[index], scene, inverse)
    sample = self.sample(shown, {'logits': result['logits'][None]})
    return dataclasses.replace(sample, name=shown.name)


def _classes(shown: Shown, result: predictor.Row) -> np.ndarray:
  """The class of each point, `[points]`, by the sum of the scores of all looks."""
  looks = zip(result['logits'], shown.inverse, strict=True)
  return sum(logits[inverse] for logits, inverse in looks).argmax(axis=-1)
