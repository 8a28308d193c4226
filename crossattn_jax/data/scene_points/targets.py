"""What the tasks have besides voxels: supervoxels, photographs, labels that another run made."""

from collections.abc import Iterable, Sequence
import concurrent.futures
import json
import os

from etils import epath
import ml_collections
import numpy as np
from PIL import Image

from crossattn_jax.data import image_ops, levels, sources
from crossattn_jax.geometry import points as points_lib

# Beside the labels of scenes: what they are of.
DESCRIPTION = 'pseudo_labels.json'


def supervoxels(ids: np.ndarray, cells: np.ndarray, rows: int, most: int) -> dict[str, np.ndarray]:
  """The supervoxels of a scene, which are those of its voxels.

  Args:
    ids: int `[n]`, of each voxel.
    cells: `[n, 3]`.
    rows: for voxels.
    most: rows for supervoxels, more than the largest id.

  Returns:
    `supervoxel`, `num_tokens` and `position`; see `batches.SceneLabelExamples`.
  """
  # No scene has a token too: means over tokens divide by their number.
  tokens = int(ids.max(initial=0)) + 1
  supervoxel, position = np.full(rows, -1, np.int32), np.zeros((most, 3), np.float32)
  supervoxel[: len(ids)] = ids
  position[:tokens] = points_lib.means(cells, ids, tokens)
  return {'supervoxel': supervoxel, 'num_tokens': np.int32(tokens), 'position': position}


def images(views: Iterable[Image.Image], config: ml_collections.ConfigDict) -> np.ndarray:
  """Photographs as the network sees them: float32 `[num_views, height, width, 3]`."""
  result = np.zeros((config.num_views, *config.image_size, 3), np.float32)
  for row, view in zip(result, views, strict=False):
    image = image_ops.resize(view, config.image_size, 'bilinear')
    row[:] = levels.normalize(np.asarray(image), config)
  return result


def choose_frames(frames: int, shown: int, rng: np.random.Generator | None) -> np.ndarray:
  """Numbers of photographs, ascending: one from each of as many equal stretches of time.

  Args:
    frames: that there are, at least 1; a remainder at the end is not shown.
    shown: how many are wanted; if there are fewer, some are shown again.
    rng: None: the one in the middle of each stretch.
  """
  if frames < shown:
    again = np.arange(shown - frames) if rng is None else rng.integers(frames, size=shown - frames)
    return np.sort(np.append(np.arange(frames), again % frames))
  stretch = frames // shown
  within = np.full(shown, stretch // 2) if rng is None else rng.integers(stretch, size=shown)
  return np.arange(shown) * stretch + within


class PseudoLabels:
  """Labels of points that another run made, in a file for each scene.

  `DIR/KEY.npz` has `labels`, integers `[points]`, -1 for none; `DIR/pseudo_labels.json` names the
  classes.
  """

  def __init__(
    self, folder: str | os.PathLike[str], keys: Sequence[str], class_names: Sequence[str]
  ):
    """Looks whether the files of all scenes are there.

    Raises:
      ValueError: files are missing, which are named, or are of other classes.
    """
    self._folder = epath.Path(folder)
    where = f'dataset.labels_dir={str(folder)!r}'
    description = self._folder / DESCRIPTION
    if not description.exists():
      raise ValueError(
        f'{where} has no {DESCRIPTION}; --mode=label --workdir=RUN --output=FOLDER writes labels'
      )
    names = json.loads(description.read_text())['class_names']
    if changes := sources.class_changes(names, class_names):
      raise ValueError(f'{where} has labels of other classes than the data set: {changes}')
    with concurrent.futures.ThreadPoolExecutor() as pool:  # A bucket takes its time.
      there = pool.map(lambda key: self._path(key).exists(), keys)
      missing = [key for key, is_there in zip(keys, there, strict=True) if not is_there]
    if missing:
      raise ValueError(
        f'{where} has no labels of {len(missing)} of the {len(keys)} scenes, such as '
        f'{str(self._path(missing[0]))!r}; label them, or name a split without them'
      )

  def _path(self, key: str) -> epath.Path:
    return self._folder / f'{key}.npz'

  def __call__(self, key: str, count: int) -> np.ndarray:
    """int32 `[count]`, of the points of a scene.

    Raises:
      ValueError: they are of another number of points.
    """
    with self._path(key).open('rb') as file, np.load(file) as arrays:
      labels = arrays['labels'].astype(np.int32)
    if labels.shape != (count,):
      raise ValueError(
        f'{str(self._path(key))!r} has labels of shape {labels.shape} for a scene of {count} '
        'points; it is of other data'
      )
    return labels
