"""From what a scene's supervoxels show to labels that another network learns from."""

from collections.abc import Sequence

import numpy as np

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
