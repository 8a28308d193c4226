"""Several looks at a scene, each turned otherwise, decide together what its points are."""

import numpy as np


class Votes:
  """Sums the scores of the points of scenes until all looks at a scene are there.

  Nothing else is kept, and nothing of a scene after that.
  """

  def __init__(self, count: int):
    """Takes the number of looks at each scene."""
    self._count = count
    self._sums: dict[int, tuple[int, np.ndarray]] = {}

  def clear(self) -> None:
    """Forgets everything, as where an evaluation was broken off."""
    self._sums.clear()

  def add(self, scene: int, scores: np.ndarray) -> np.ndarray | None:
    """Counts a look at a scene.

    Args:
      scene: its number.
      scores: `[points, classes]`.

    Returns:
      The sum of the scores after the last look; None before.
    """
    seen, total = self._sums.pop(scene, (0, 0))
    seen, total = seen + 1, total + scores
    if seen == self._count:
      return total
    self._sums[scene] = seen, total
    return None
