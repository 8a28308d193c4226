"""From what a scene's supervoxels show to labels that another network learns from."""

from collections.abc import Mapping, Sequence
import io
import json
from typing import Any

from etils import epath
import ml_collections
import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data.scene_points import batches, sources, targets
from crossattn_jax.metrics import segmentation as metrics
from crossattn_jax.tasks import base, predictor

ABSENT = -1


def supervoxel_labels(
  scores: np.ndarray,
  tags: np.ndarray,
  threshold: float = 0.5,
  forced: Sequence[int] | None = None,
) -> np.ndarray:
  """The class of each supervoxel, among those that the scene is known to hold.

  Source: the code of MIT (Yang et al. 2023, arXiv 2310.12817), which lets a class have a supervoxel
  at least: whichever shows it most.

  Args:
    scores: `[supervoxels, classes]`, class activations in [0, 1].
    tags: `[classes]`, not zero where the scene holds a class.
    threshold: supervoxels that show no class of the scene as much have none.
    forced: the classes that get their best supervoxel, later ones last; those of the scene by
      default. The authors take those of all scenes of a batch, one scene after the other: one that
      the scene does not hold then gets supervoxel 0.

  Returns:
    `[supervoxels]` int32, `ABSENT` for none.
  """
  tags = np.asarray(tags) != 0
  scores = scores * tags
  labels = np.where(scores.max(axis=1) < threshold, ABSENT, scores.argmax(axis=1)).astype(np.int32)
  for label in np.flatnonzero(tags) if forced is None else forced:
    labels[scores[:, label].argmax()] = label
  return labels


def of_scene(
  said: Mapping[str, np.ndarray],
  examples: batches.SceneLabelExamples,
  options: ml_collections.ConfigDict,
) -> tuple[sources.Scene, np.ndarray]:
  """The labels of the points of a scene, as they are in its file.

  Args:
    said: 'cams' of its supervoxels, and of its row of a batch 'index', 'tags', 'num_tokens' and
      'supervoxel'.
    examples: which it is one of.
    options: `config.task.pseudo_labels`.

  Returns:
    The scene, and `[points]` int32, `ABSENT` for none.
  """
  index, forced = int(said['index']), None
  if options.together > 1:
    first = index - index % options.together
    together = range(first, min(first + options.together, len(examples.source)))
    forced = np.concatenate([np.flatnonzero(examples.source.tags(i)) for i in together])
  labels = supervoxel_labels(
    said['cams'][: said['num_tokens']], said['tags'], options.threshold, forced
  )
  scene = examples.scene(index)
  voxels = examples.voxels(index, scene=scene)
  return scene, of_points(labels, said['supervoxel'], voxels)


def of_points(values: np.ndarray, supervoxel: np.ndarray, voxels: batches.Voxelized) -> np.ndarray:
  """What supervoxels have, for each point of a scene.

  Args:
    values: `[supervoxels, ...]`.
    supervoxel: `[n]` of the voxels; there may be padding behind them.
    voxels: of the scene.

  Returns:
    `[points, ...]`.
  """
  return values[supervoxel[: len(voxels.cells)]][voxels.inverse]


def compare(true: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Points by true class and by label.

  Args:
    true: `[points]`, -1 where nobody knows.
    labels: `[points]`, `ABSENT` for none.
    num_classes: how many there are.

  Returns:
    `[num_classes + 1, num_classes + 1]`; the last class is no label, which is never true.
  """
  true = np.where(true < num_classes, true, ABSENT)
  labels = np.where(labels == ABSENT, num_classes, labels)
  return metrics.host_confusion_matrix(true, labels, num_classes + 1)


def metrics_of(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
  """How good labels are: 'pseudo_miou', 'pseudo_accuracy', 'iou/CLASS', and the share 'labelled'.

  A point without a label is wrong. None where no point has a true class.

  Args:
    confusion: the sum of what `compare` returns.
    class_names: in the order of the labels.
  """
  if not confusion.any():
    return {}
  iou = metrics.intersection_over_union(confusion)[:-1]
  return {
    'pseudo_miou': metrics.mean_over_classes(iou, 'skip'),
    'pseudo_accuracy': metrics.pixel_accuracy(confusion),
    'labelled': 1 - float(confusion[:, -1].sum() / confusion.sum()),
    **metrics.named_classes(iou, class_names),
  }


class Writer(base.Labels):
  """Writes a file of labels for each scene that was learnt from; see `targets.PseudoLabels`.

  `KEY.npz` has 'labels' `[points]` int16, -1 for none, in the order of the scene's file; where the
  truth is known also 'confusion', see `compare`.
  """

  def __init__(self, task: base.Task, output: epath.Path, origin: Mapping[str, Any]):
    """Finds the scenes that lack a file; see `base.Labels`."""
    self._task, self._output = task, output
    dataset, options = task.config.dataset, task.config.task.pseudo_labels
    self.examples = task.examples(dataset.train_split)
    self._description = {
      'dataset': dataset.name,
      'split': dataset.train_split,
      'class_names': list(task.class_names),
      'voxel_size': dataset.voxel_size,
      **options.to_dict(),
      **origin,
    }
    self._begin()
    keys = self.examples.source.keys
    self.pending = [index for index, key in enumerate(keys) if not self._file(key).exists()]

  def _begin(self) -> None:
    """Says whose labels the folder has, before there are any; refuses one of others."""
    path = self._output / targets.DESCRIPTION
    if not path.exists():
      self._output.mkdir(parents=True, exist_ok=True)
      _replace(path, json.dumps(self._description, indent=2).encode())
      return
    there = json.loads(path.read_text())
    for name, value in self._description.items():
      if there.get(name) != value:
        raise config_errors.ConfigError(
          f'--output={self._output} has labels with {name}={there.get(name)!r}, these would be '
          f'with {name}={value!r}; give another folder'
        )

  def _file(self, key: str) -> epath.Path:
    return self._output / f'{key}.npz'

  def add(self, examples: Mapping[str, np.ndarray]) -> None:
    """Writes the labels of some scenes, of `Evaluation.examples`."""
    for row in range(len(examples['index'])):
      said = predictor.row_of(examples, row)
      scene, labels = of_scene(said, self.examples, self._task.config.task.pseudo_labels)
      arrays = {'labels': labels.astype(np.int16)}
      if scene.labels is not None:
        arrays['confusion'] = compare(scene.labels, labels, len(self._task.class_names))
      buffer = io.BytesIO()
      np.savez_compressed(buffer, **arrays)
      path = self._file(self.examples.source.keys[said['index']])
      path.parent.mkdir(parents=True, exist_ok=True)
      _replace(path, buffer.getvalue())

  def finish(self) -> dict[str, float]:
    """How many scenes have labels, and how good they are; writes this into the description.

    Scenes that cannot be read, where `dataset.unreadable` is 'skip', have none.
    """
    size = len(self._task.class_names) + 1
    confusion, points, labelled = np.zeros((size, size), np.int64), 0, 0
    written = [path for path in map(self._file, self.examples.source.keys) if path.exists()]
    for path in written:
      with path.open('rb') as file, np.load(file) as arrays:
        points += len(arrays['labels'])
        labelled += np.count_nonzero(arrays['labels'] != ABSENT)
        if 'confusion' in arrays:
          confusion += arrays['confusion']
    results = metrics_of(confusion, self._task.class_names)
    results |= {'scenes': len(written), 'points': points, 'labelled': labelled / max(points, 1)}
    _replace(
      self._output / targets.DESCRIPTION,
      json.dumps(self._description | {'metrics': results}, indent=2).encode(),
    )
    return results


def _replace(path: epath.Path, content: bytes) -> None:
  """Writes a file at once: whoever looks finds all of it or nothing."""
  part = path.with_name(path.name + '.part')
  part.write_bytes(content)
  part.replace(path)
