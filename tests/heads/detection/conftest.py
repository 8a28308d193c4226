import numpy as np
import pytest

from crossattn_jax.heads.detection import anchors


def overlap(a, b):
  sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
  shared = np.prod(np.maximum(sides, 0))
  areas = [np.prod(box[2:] - box[:2]) for box in (a, b)]
  return shared / max(sum(areas) - shared, 1e-6)


@pytest.fixture(scope='session')
def grid():
  """120 anchors on two levels, of inputs of 32 x 48."""
  spec = anchors.Anchors((8, 16), scales=(2.0,), ratios=(0.5, 1.0))
  return spec.of_input((32, 48))


@pytest.fixture(scope='session')
def greedy():
  """The definition of suppression: (score, group, box, ...) in order, within groups."""

  def suppress(candidates, iou_threshold):
    kept = []
    for candidate in sorted(candidates, key=lambda x: -x[0]):
      rivals = [other[2] for other in kept if other[1] == candidate[1]]
      if all(overlap(candidate[2], box) <= iou_threshold for box in rivals):
        kept.append(candidate)
    return kept

  return suppress
