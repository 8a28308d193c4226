"""ScanNet v2 as it is released: meshes of scans, their labels, and the photographs of the camera.

DIR/scannetv2_train.txt                          lists of scans, also _val and _test
DIR/scans/SCAN/SCAN_vh_clean_2.ply               (scans_test/ for those of the test)
DIR/scans/SCAN/SCAN_vh_clean_2.labels.ply        NYU40 ids of the same vertices
DIR/scans/SCAN/color/0.jpg, 20.jpg ...           or below frames/, scannet_frames_25k/
DIR/supervoxels/SCAN.npy                         ids of vertices; grown if they are not there
"""

from collections.abc import Sequence
import functools
import os
import pathlib

import numpy as np
from PIL import Image

from crossattn_jax.data import pipeline, splits
from crossattn_jax.data import sources as common
from crossattn_jax.data.scene_points import files, folder, sources

CLASS_NAMES = (
  'wall',
  'floor',
  'cabinet',
  'bed',
  'chair',
  'sofa',
  'table',
  'door',
  'window',
  'bookshelf',
  'picture',
  'counter',
  'desk',
  'curtain',
  'refrigerator',
  'shower curtain',
  'toilet',
  'sink',
  'bathtub',
  'other furniture',
)
# NYU40 ids of them.
CLASS_VALUES = (*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39)
# The class of each of them, and of larger numbers.
_LABELS = np.full(max(CLASS_VALUES) + 2, -1, np.int32)
_LABELS[np.array(CLASS_VALUES)] = np.arange(len(CLASS_NAMES))
SPLITS = ('train', 'val', 'test')
# Of the frames of a video, those with numbers that are multiples of it.
FRAME_STEP = 20

_FRAME_FOLDERS = ('scans/{}/color', 'frames/{}/color', 'scannet_frames_25k/{}/color')


class ScanNet:
  """A split of ScanNet.

  Attributes:
    class_names: the 20 classes of the benchmark.
    keys: names of the scans.
  """

  class_names = CLASS_NAMES

  def __init__(self, data_dir: str | os.PathLike[str], split: str):
    """Looks whether all meshes are there.

    Raises:
      ValueError: there is no such list, or files are missing, which are named and counted.
    """
    self._root = pathlib.Path(data_dir)
    self._has_labels = splits.FolderSplit.parse(split).name != 'test'
    self.keys = tuple(_read_list(self._root, split))
    wanted = [path for key in self.keys for path in self._paths(key)]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
      raise ValueError(
        f'{len(missing)} of the {len(wanted)} files of the {len(self.keys)} scans of {split!r} are '
        f'missing, such as {str(missing[0])!r}; download them, or shorten the list'
      )

  def _paths(self, key: str) -> Sequence[pathlib.Path]:
    stem = self._root / ('scans' if self._has_labels else 'scans_test') / key / f'{key}_vh_clean_2'
    kinds = ('.ply', '.labels.ply') if self._has_labels else ('.ply',)
    return [stem.with_name(stem.name + kind) for kind in kinds]

  def __len__(self) -> int:
    return len(self.keys)

  def scene(self, index: int) -> sources.Scene:
    """See `PointSource`."""
    mesh, *labels = self._paths(self.keys[index])
    scene = files.read(mesh)._replace(labels=None)
    if labels:
      values = files.read(labels[0]).labels
      self._require_vertices(values, scene, labels[0])
      scene = scene._replace(labels=_LABELS[np.clip(values, 0, len(_LABELS) - 1)])
    path = self._root / 'supervoxels' / f'{self.keys[index]}.npy'
    if path.is_file():
      ids = np.load(path).astype(np.int32)
      self._require_vertices(ids, scene, path)
      scene = scene._replace(supervoxels=ids)
    return scene

  def _require_vertices(self, values: np.ndarray, scene: sources.Scene, path: pathlib.Path) -> None:
    if np.shape(values) != (len(scene.points),):
      raise pipeline.UnreadableError(
        f'{str(path)!r} has values of shape {np.shape(values)}; its mesh has {len(scene.points)} '
        'vertices'
      )

  def views(self, index: int) -> int:
    """See `PointSource`."""
    return len(self._frames(index))

  def view(self, index: int, number: int) -> Image.Image:
    """See `PointSource`."""
    return folder.read_image(self._frames(index)[number])

  def tags(self, index: int) -> np.ndarray:
    """See `PointSource`."""
    return sources.present(self.scene(index).labels, len(CLASS_NAMES))

  @functools.lru_cache(4096)  # noqa: B019  (a source lives as long as its run)
  def _frames(self, index: int) -> tuple[str, ...]:
    for pattern in _FRAME_FOLDERS:
      paths, _ = common.find_files(self._root / pattern.format(self.keys[index]))
      numbered = {int(pathlib.Path(path).stem): path for path in paths if _is_number(path)}
      if numbered:
        return tuple(numbered[k] for k in sorted(numbered) if k % FRAME_STEP == 0)
    return ()


def _is_number(path: str) -> bool:
  return pathlib.Path(path).stem.isdecimal()


def _read_list(root: pathlib.Path, split: str) -> list[str]:
  """Scans of a split, 'train' or a share of it; raises ValueError."""
  share = splits.FolderSplit.parse(split)
  path = root / f'scannetv2_{share.name}.txt'
  if not path.is_file():
    raise ValueError(
      f'{str(path)!r} does not exist: it lists the scans of the split, a name in each line'
    )
  names = path.read_text().split()
  chosen = [name for name in names if share.has(name)]
  if not chosen:
    raise splits.empty_share(split, path, len(names), 'scans')
  return chosen
