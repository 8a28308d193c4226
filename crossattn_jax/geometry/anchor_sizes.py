"""Sizes of anchors that suit the boxes of a data set, as YOLOv5 looks for them: on the host.

Sizes are (width, height) in pixels of the network's input.
"""

from collections.abc import Sequence

import numpy as np

Sizes = Sequence[Sequence[Sequence[float]]]


def _likeness(boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
  """How like each of `boxes` `[n, 2]` its best anchor is: the smaller ratio of sides, 0 to 1."""
  ratios = boxes[:, None] / anchors
  return np.minimum(ratios, 1 / ratios).min(axis=-1).max(axis=-1)


def recall(boxes: np.ndarray, anchors: np.ndarray, max_ratio: float = 4.0) -> float:
  """The share of boxes that some anchor learns: the best recall that is possible.

  Args:
    boxes: sizes `[n, 2]`, n above 0.
    anchors: sizes `[..., 2]`.
    max_ratio: of an anchor's and a box's widths, and of their heights, the larger over the smaller.
  """
  return float(np.mean(_likeness(boxes, np.reshape(anchors, (-1, 2))) > 1 / max_ratio))


def fit(
  boxes: np.ndarray,
  count: int,
  rng: np.random.Generator,
  *,
  max_ratio: float = 4.0,
  starts: int = 30,
  generations: int = 1000,
) -> np.ndarray:
  """Looks for anchors that are like the boxes: k-means, then mutations that make them better.

  Args:
    boxes: sizes `[n, 2]`.
    count: of anchors.
    rng: draws where k-means starts, and mutations.
    max_ratio: as in `recall`; boxes beyond it do not count.
    starts: of k-means.
    generations: of mutations.

  Returns:
    Sizes `[count, 2]`, smallest area first.

  Raises:
    ValueError: there are too few boxes of different sizes.
  """
  from scipy.cluster import vq

  boxes = boxes[(boxes >= 2).any(axis=1)]
  distinct = np.unique(boxes, axis=0)
  if len(distinct) < count:
    raise ValueError(
      f'{count} anchors need boxes of as many different sizes, of at least 2 pixels; the data has '
      f'{len(distinct)}: use anchors of given sizes'
    )
  scale = np.where(np.ptp(boxes, axis=0) > 0, boxes.std(axis=0), 1)

  def clusters() -> tuple[float, np.ndarray]:
    start = rng.choice(distinct, count, replace=False, shuffle=False) / scale
    centers, distortion = vq.kmeans(boxes / scale, start)
    # A cluster that lost all its boxes is gone.
    return (distortion, centers) if len(centers) == count else (np.inf, start)

  _, anchors = min((clusters() for _ in range(starts)), key=lambda result: result[0])

  def fitness(anchors: np.ndarray) -> float:
    likeness = _likeness(boxes, anchors)
    return float(np.mean(likeness * (likeness > 1 / max_ratio)))

  anchors = anchors * scale
  best = fitness(anchors)
  for _ in range(generations):
    noise = rng.normal(1, 0.1, anchors.shape).clip(0.3, 3.0)
    mutant = anchors * np.where(rng.random(anchors.shape) < 0.9, noise, 1)
    if (value := fitness(mutant)) > best:
      anchors, best = mutant, value
  return anchors[np.argsort(anchors.prod(axis=1), kind='stable')]


def suitable(
  boxes: Sequence[np.ndarray],
  anchors: Sizes,
  seed: int = 0,
  *,
  min_recall: float = 0.98,
  max_ratio: float = 4.0,
  **options: int,
) -> Sizes:
  """The anchors that are given if they find most boxes, otherwise such that find more.

  Args:
    boxes: sizes `[n, 2]` of the objects of every image. Those of an image are scaled by one factor
      of 0.9 to 1.1, as training will scale them.
    anchors: of every level, finest first, as many on each.
    seed: of all that is drawn.
    min_recall: that is enough.
    max_ratio: as in `recall`.
    **options: of `fit`.

  Returns:
    Of every level, smallest area first, in hundredths of a pixel. Those that are given where there
    are no boxes or no others find more.

  Raises:
    ValueError: others are needed, and there are too few boxes.
  """
  rng = np.random.default_rng(seed)
  sizes = [np.reshape(rows, (-1, 2)) * rng.uniform(0.9, 1.1) for rows in boxes]
  sizes = np.concatenate([np.zeros((0, 2)), *sizes])
  sizes = sizes[(sizes > 0).all(axis=1)]
  given = np.asarray(anchors, float)
  if not len(sizes) or recall(sizes, given, max_ratio) >= min_recall:
    return anchors
  found = fit(sizes, given[..., 0].size, rng, max_ratio=max_ratio, **options).round(2)
  if recall(sizes, found, max_ratio) <= recall(sizes, given, max_ratio):
    return anchors
  return tuple(tuple(map(tuple, level)) for level in found.reshape(given.shape).tolist())
