"""What a network needs to know of the cells of a scene, in arrays of a size that is given."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from crossattn_jax.geometry import points as points_lib

# Cells around each cell that the first convolution sees, along an axis.
WINDOW = 5


class Pyramid(NamedTuple):
  """The cells of a scene and those of the levels above them.

  Attributes:
    cells: `[n, 3]` integers of each level.
    links: `geometry.points.Coarsening` from each level to the next.
  """

  cells: Sequence[np.ndarray]
  links: Sequence[points_lib.Coarsening]

  @classmethod
  def build(cls, cells: np.ndarray, num_levels: int) -> 'Pyramid':
    """Takes the cells of the finest level."""
    levels, links = [cells], []
    for level in range(num_levels - 1):
      links.append(points_lib.coarsen(levels[-1], 2**level))
      levels.append(links[-1].cells)
    return cls(levels, links)

  @property
  def rows(self) -> tuple[int, ...]:
    """Number of cells of each level."""
    return tuple(map(len, self.cells))


def fits(rows: Sequence[int], bucket: Sequence[int]) -> bool:
  """Whether a bucket holds so many cells at each level."""
  return all(count <= most for count, most in zip(rows, bucket, strict=True))


def rounded_up(rows: Sequence[int]) -> tuple[int, ...]:
  """A bucket for so many rows, by an eighth larger at most: scenes of about one size share it."""
  steps = (1 << max(int(count).bit_length() - 4, 3) for count in rows)
  return tuple(-(-count // step) * step for count, step in zip(rows, steps, strict=True))


def within(pyramid: Pyramid, bucket: Sequence[int], center: np.ndarray) -> np.ndarray:
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


def tables(pyramid: Pyramid, colors: np.ndarray, bucket: Sequence[int]) -> dict[str, np.ndarray]:
  """The arrays of a scene.

  Args:
    pyramid: that the bucket holds.
    colors: `[n, 3]` of its finest cells, as the network sees them.
    bucket: rows of each level, N_0 ... N_L.

  Returns:
    `windows`: float32 `[N_0, 375]`, colours around each cell, 0 where nothing is.
    `neighbours_l`: int32 `[27, N_l]`, see `geometry.points.neighbours`.
    `children_l`: int32 `[8, N_{l+1}]`, rows of level l in each cell of level l + 1.
    `place_l`: int32 `[N_l]`, 8 times the row of the cell of level l + 1, plus the octant in it.
    Tables are -1 where there is no cell.
  """
  window = points_lib.neighbours(pyramid.cells[0], WINDOW)
  result = empty(bucket)
  points_lib.gather(colors.astype(np.float32), window, out=result['windows'][: len(colors)])
  found = {'neighbours_0': _core(window)}
  for level, cells in enumerate(pyramid.cells[1:], start=1):
    found[f'neighbours_{level}'] = points_lib.neighbours(cells, stride=2**level)
  for level, link in enumerate(pyramid.links):
    found[f'children_{level}'] = link.children
    found[f'place_{level}'] = 8 * link.parent + link.octant
  for name, x in found.items():
    result[name][tuple(map(slice, x.shape))] = x
  return result


def shapes(bucket: Sequence[int]) -> dict[str, tuple[tuple[int, ...], type]]:
  """Shape and dtype of each of the `tables` of a bucket."""
  coarser = bucket[1:]
  return {
    'windows': ((bucket[0], 3 * WINDOW**3), np.float32),
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


def _core(window: np.ndarray) -> np.ndarray:
  """The table of windows of 3 cells in that of `WINDOW`."""
  cut = slice(WINDOW // 2 - 1, WINDOW // 2 + 2)
  return window.reshape(WINDOW, WINDOW, WINDOW, -1)[cut, cut, cut].reshape(27, -1)
