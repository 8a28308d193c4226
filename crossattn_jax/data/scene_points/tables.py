"""What a network needs to know of the cells of a scene, in arrays of a size that is given."""

from collections.abc import Sequence

import numpy as np

from crossattn_jax.geometry import points as points_lib


def fits(rows: Sequence[int], bucket: Sequence[int]) -> bool:
  """Whether a bucket holds so many cells at each level."""
  return all(count <= most for count, most in zip(rows, bucket, strict=True))


def rounded_up(rows: Sequence[int]) -> tuple[int, ...]:
  """A bucket for so many rows, by an eighth larger at most: scenes of about one size share it."""
  steps = (1 << max(int(count).bit_length() - 4, 3) for count in rows)
  return tuple(-(-count // step) * step for count, step in zip(rows, steps, strict=True))


def within(pyramid: points_lib.Pyramid, bucket: Sequence[int], center: np.ndarray) -> np.ndarray:
  """The cells closest to a point of the floor plan that a bucket holds.

  Args:
    pyramid: of the scene.
    bucket: most cells of each level.
    center: x and y, in cells.

  Returns:
    Rows of the finest level, ascending: a column of the scene from floor to ceiling.
  """
  distance = np.square(pyramid.cells[0][:, :2] - center).sum(axis=1)
  order = np.argsort(distance, kind='stable')
  rank = np.empty(len(order), np.int64)
  rank[order] = np.arange(len(order))
  count = bucket[0]
  for link, most in zip(pyramid.links, bucket[1:], strict=True):
    # A coarser cell is there from its closest finer cell on.
    rank = np.append(rank, len(order))[link.children].min(axis=0)
    if len(rank) > most:
      count = min(count, int(np.partition(rank, most)[most]))
  return np.sort(order[:count])


def tables(
  pyramid: points_lib.Pyramid, colors: np.ndarray, bucket: Sequence[int]
) -> dict[str, np.ndarray]:
  """The arrays of a scene, padded to the bucket; see `geometry.points.tables`."""
  known = {name: shape for name, (shape, _) in shapes(bucket).items()}
  return points_lib.tables(pyramid, colors, known)


def shapes(bucket: Sequence[int]) -> dict[str, tuple[tuple[int, ...], type]]:
  """Shape and dtype of each of the `tables` of a bucket."""
  coarser = bucket[1:]
  return {
    'windows': ((bucket[0], 3 * points_lib.WINDOW**3), np.float32),
    **{f'neighbours_{level}': ((27, rows), np.int32) for level, rows in enumerate(bucket)},
    **{f'children_{level}': ((8, rows), np.int32) for level, rows in enumerate(coarser)},
    **{f'place_{level}': ((rows,), np.int32) for level, rows in enumerate(bucket[:-1])},
  }


def empty(bucket: Sequence[int]) -> dict[str, np.ndarray]:
  """The arrays of no scene."""
  result = {}
  for name, (shape, dtype) in shapes(bucket).items():
    # Zeros take no time until they are written to.
    result[name] = np.zeros(shape, dtype)
    if name != 'windows':
      result[name].fill(points_lib.ABSENT)
  return result
