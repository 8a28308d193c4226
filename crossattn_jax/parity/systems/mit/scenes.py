"""The originals' batches, rows of all scenes in one array, and this library's, scene by scene."""

from collections.abc import Sequence

import numpy as np

from crossattn_jax.geometry import points


class Scenes:
  """The cells of a recorded batch and all coarser ones.

  Attributes:
    levels: of each scene.
    rows: by level, of each scene: where its rows are among those of all scenes. The coarser levels
      of the originals are sorted by scene first.
  """

  def __init__(self, coords: np.ndarray, num_levels: int):
    """Takes `[n, 4]`: scene, x, y, z."""
    coords = np.asarray(coords)
    self.scenes = np.unique(coords[:, 0])
    rows = [np.flatnonzero(coords[:, 0] == scene) for scene in self.scenes]
    self.levels = [points.levels(coords[row, 1:], num_levels) for row in rows]
    self.rows = [rows]
    for level in range(1, num_levels):
      counts = [len(scene[level].cells) for scene in self.levels]
      ends = np.cumsum(counts)
      self.rows.append([np.arange(end - n, end) for n, end in zip(counts, ends, strict=True)])

  def count(self, level: int) -> int:
    """The rows of all scenes."""
    return sum(map(len, self.rows[level]))

  def coords(self, level: int) -> np.ndarray:
    """`[n, 4]` of a level."""
    result = np.empty((self.count(level), 4), np.int32)
    for number, rows, scene in zip(self.scenes, self.rows[level], self.levels, strict=True):
      result[rows, 0] = number
      result[rows, 1:] = scene[level].cells
    return result

  def join(self, arrays: Sequence[np.ndarray], level: int, of: int | None = None) -> np.ndarray:
    """Puts arrays of scenes `[..., n]` together, about the rows of a level.

    Args:
      arrays: one of each scene.
      level: whose rows they speak about.
      of: the level whose rows they hold, if they are tables.
    """
    shape = (*arrays[0].shape[:-1], self.count(level))
    result = np.empty(shape, arrays[0].dtype)
    for index, (array, rows) in enumerate(zip(arrays, self.rows[level], strict=True)):
      if of is not None:
        array = np.where(array == points.ABSENT, points.ABSENT, self.rows[of][index][array])
      result[..., rows] = array
    return result

  def pad(self, values: np.ndarray, level: int) -> np.ndarray:
    """`[n, channels]` of all scenes as `[scenes, most rows, channels]`."""
    rows = self.rows[level]
    result = np.zeros((len(rows), max(map(len, rows)), *values.shape[1:]), values.dtype)
    for index, row in enumerate(rows):
      result[index, : len(row)] = values[row]
    return result

  def unpad(self, values: np.ndarray, level: int) -> np.ndarray:
    """The inverse of `pad`."""
    result = np.empty((self.count(level), *values.shape[2:]), values.dtype)
    for index, row in enumerate(self.rows[level]):
      result[row] = values[index, : len(row)]
    return result
