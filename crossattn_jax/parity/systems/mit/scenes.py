"""The originals' batches, rows of all scenes in one array, as one scene of this library."""

import numpy as np

from crossattn_jax.geometry import points


class Scenes:
  """The cells of a recorded batch and of all coarser levels.

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
