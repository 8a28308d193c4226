"""The originals' batches, rows of all scenes in one array, as this library has them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.geometry import points
from crossattn_jax.layers import sparse_convolution as sparse


class Scenes:
  """The cells of a recorded batch and of all coarser levels, as one scene.

  The scenes lie side by side along x, so far from each other that no window and no coarse cell
  reaches another one. Then rows are where the originals have them: as given, and at the coarser
  levels sorted by scene, x, y and z.

  Attributes:
    levels: of `geometry.points.levels`.
  """

  def __init__(self, coords: np.ndarray, num_levels: int):
    """Takes `[n, 4]` integers: scene, x, y, z."""
    coords = np.asarray(coords, np.int64)
    coarsest = 2**num_levels
    extent = np.ptp(coords[:, 1]) + 4 * coarsest
    self._step = -(-extent // coarsest) * coarsest
    self._least = coords[:, 1].min() // coarsest * coarsest - coarsest
    cells = coords[:, 1:] + np.outer(coords[:, 0] * self._step, [1, 0, 0])
    self.levels = points.levels(cells, num_levels)

  def coords(self, level: int) -> np.ndarray:
    """`[n, 4]` int32 of a level, as the originals have them."""
    cells = self.levels[level].cells
    scene = (cells[:, :1] - self._least) // self._step
    return np.append(scene, cells - scene * [self._step, 0, 0], axis=1).astype(np.int32)


class PaddedScenes:
  """The cells of a recorded batch as a batch of scenes, each padded to the size of the largest.

  Attributes:
    rows: of each scene in the recorded arrays.
    levels: of each scene, of `geometry.points.levels`.
  """

  def __init__(self, coords: np.ndarray, num_levels: int = 5):
    """Takes `[n, 4]` integers: scene, x, y, z."""
    coords = np.asarray(coords)
    scenes = range(coords[:, 0].max() + 1)
    self.rows = [np.flatnonzero(coords[:, 0] == scene) for scene in scenes]
    self.levels = [points.levels(coords[rows, 1:], num_levels) for rows in self.rows]

  def tables(self) -> list[sparse.Level]:
    """What networks take of each level."""
    results = []
    for scenes in zip(*self.levels, strict=True):
      links = [link for _, _, link in scenes]
      tables = [[neighbours for _, neighbours, _ in scenes]]
      if None not in links:
        tables.append([link.children for link in links])
        tables.append([8 * link.parent + link.octant for link in links])
      results.append(sparse.Level(*(_stack(arrays) for arrays in tables)))
    return results

  def windows(self, features: jax.Array) -> jax.Array:
    """Around each cell those of `[n, channels]`: `[batch, m, 125 * channels]`."""
    results = []
    for rows, levels in zip(self.rows, self.levels, strict=True):
      around = points.neighbours(levels[0].cells, 5).T
      found = jnp.pad(features[rows], ((0, 1), (0, 0)))[around]
      results.append(found.reshape(len(rows), -1))
    size = max(map(len, results))
    return jnp.stack([jnp.pad(x, ((0, size - len(x)), (0, 0))) for x in results])

  def join(self, x: jax.Array, level: int) -> jax.Array:
    """Rows `[batch, m, channels]` of a level in one array, as the originals have them."""
    x = jnp.concatenate(
      [own[: len(levels[level].cells)] for own, levels in zip(x, self.levels, strict=True)]
    )
    return x[np.argsort(np.concatenate(self.rows))] if level == 0 else x

  def coords(self, level: int) -> np.ndarray:
    """`[n, 4]` int32 of a coarser level, as the originals have them."""
    cells = [levels[level].cells for levels in self.levels]
    return np.concatenate(
      [np.insert(own, 0, scene, axis=1) for scene, own in enumerate(cells)]
    ).astype(np.int32)

  def supervoxels(self, ids: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What networks take of supervoxels.

    Args:
      ids: of each scene's cells.

    Returns:
      The ids `[batch, m]`, how many supervoxels each scene has, `[batch]`, and the mean cell of
      each, `[batch, supervoxels, 3]`, 0 where it has none.
    """
    counts = np.array([own.max() + 1 for own in ids])
    position = [
      points.means(levels[0].cells, own, counts.max())
      for own, levels in zip(ids, self.levels, strict=True)
    ]
    return _stack(ids), counts, np.stack(position)


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
  """Pads the last axis with -1 to the longest's."""
  size = max(x.shape[-1] for x in arrays)
  widths = lambda x: [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])]
  return np.stack([np.pad(x, widths(x), constant_values=-1) for x in arrays])
