"""Points in space on a grid: voxels, the coarser levels above them, who is next to whom.

All of it is integer work that knows no weights, so NumPy does it, in the input pipeline: networks
get tables of rows and compute on static shapes (MIT, Yang et al. 2023, arXiv 2310.12817; Minkowski
Engine's sparse convolutions, Choy et al. 2019, arXiv 1904.08755, section 3).

Cells are `[n, 3]` integers x, y, z, each once. A level of stride s has cells that are multiples of
s. A table says rows of cells, -1 where there is no such cell; its columns are the cells it speaks
of.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

ABSENT = -1
# Cells around each cell that the first convolution of networks sees, along an axis.
WINDOW = 5


class Voxels(NamedTuple):
  """Points by the cell they are in.

  Attributes:
    cells: `[n, 3]` int32, the least of each axis 0.
    first: `[n]`, the first point in each cell: its colour and label are the voxel's.
    inverse: `[points]` int32, the row of every point's cell.
  """

  cells: np.ndarray
  first: np.ndarray
  inverse: np.ndarray


class Coarsening(NamedTuple):
  """A level above another, of twice the stride.

  Attributes:
    cells: `[m, 3]`, sorted by x, then y, then z.
    children: `[8, m]` int32, rows of the finer level by octant: x + 2 y + 4 z of what is odd.
    parent: `[n]` int32, the row in `cells` of every finer cell.
    octant: `[n]` int32, which child of its parent it is.
  """

  cells: np.ndarray
  children: np.ndarray
  parent: np.ndarray
  octant: np.ndarray


class Level(NamedTuple):
  """A level of a scene, and how it hangs together with the next coarser one.

  Attributes:
    cells: `[n, 3]` integers.
    neighbours: `[27, n]` int32, see `neighbours`.
    coarsening: towards the next level; None in the last one.
  """

  cells: np.ndarray
  neighbours: np.ndarray
  coarsening: Coarsening | None


class Pyramid(NamedTuple):
  """The cells of a scene and those of the levels above them.

  Attributes:
    cells: `[n, 3]` integers of each level.
    links: from each level to the next.
  """

  cells: Sequence[np.ndarray]
  links: Sequence[Coarsening]

  @classmethod
  def build(cls, cells: np.ndarray, num_levels: int) -> 'Pyramid':
    """Takes the cells of the finest level."""
    levels, links = [cells], []
    for level in range(num_levels - 1):
      links.append(coarsen(levels[-1], 2**level))
      levels.append(links[-1].cells)
    return cls(levels, links)

  @property
  def rows(self) -> tuple[int, ...]:
    """Number of cells of each level."""
    return tuple(map(len, self.cells))


def rotation(angles: Sequence[float], order: Sequence[int] = (0, 1, 2)) -> np.ndarray:
  """A product of right-handed rotations about the axes.

  Args:
    angles: about x, y and z, in radians.
    order: axes, from the left-most factor to that which turns first.

  Returns:
    `[3, 3]`, for columns: points `[n, 3]` are turned by `points @ rotation(...).T`.
  """
  product = np.eye(3)
  for axis in order:
    cosine, sine = np.cos(angles[axis]), np.sin(angles[axis])
    turn = np.eye(3)
    before, after = (axis + 1) % 3, (axis + 2) % 3
    turn[before, before] = turn[after, after] = cosine
    turn[after, before], turn[before, after] = sine, -sine
    product = product @ turn
  return product


def voxelize(points: np.ndarray, transform: np.ndarray, *, hashed: bool = False) -> Voxels:
  """Sorts points into cells of side 1, after a linear map.

  Args:
    points: `[points, 3]` numbers.
    transform: `[3, 3]`, from points to cells: a rotation over the side of a voxel, say.
    hashed: in the order of the original's hash of cells; by x, y, z otherwise, which is better in
      memory, and what kernels of TPUs want (`kernels.sparse_convolution`).

  Raises:
    ValueError: points that are not `[points, 3]` finite numbers, or none.

  Examples:
    >>> points = np.array([[0.1, 0.1, 0.1], [0.2, 0.3, 0.1], [1.5, 0.0, 0.0]])
    >>> voxels = voxelize(points, np.eye(3))
    >>> voxels.cells.tolist(), voxels.inverse.tolist()
    ([[0, 0, 0], [1, 0, 0]], [0, 0, 1])
  """
  if points.ndim != 2 or points.shape[1] != 3 or not len(points):
    raise ValueError(f'points must be [points, 3], at least one, got {points.shape}')
  cells = np.floor(points @ transform.T)
  if not np.isfinite(cells).all():
    row = int(np.argmin(np.isfinite(cells).all(axis=1)))
    raise ValueError(f'points must be finite numbers, point {row} is {points[row]}')
  cells = cells.astype(np.int64)
  cells -= cells.min(axis=0)
  _, first, inverse = np.unique(_keys(cells)[0], return_index=True, return_inverse=True)
  cells, inverse = cells[first].astype(np.int32), inverse.ravel().astype(np.int32)
  if not hashed:
    return Voxels(cells, first, inverse)
  order = np.argsort(_fnv(cells), kind='stable')
  rank = np.empty(len(order), np.int32)
  rank[order] = np.arange(len(order), dtype=np.int32)
  return Voxels(cells[order], first[order], rank[inverse])


def coarsen(cells: np.ndarray, stride: int = 1) -> Coarsening:
  """The level above one whose cells are multiples of `stride`, negative ones too."""
  corner = cells // (2 * stride) * (2 * stride)
  _, first, parent = np.unique(_keys(corner)[0], return_index=True, return_inverse=True)
  parent = parent.ravel().astype(np.int32)
  octant = ((cells - corner) // stride @ np.array([1, 2, 4], cells.dtype)).astype(np.int32)
  children = np.full((8, len(first)), ABSENT, np.int32)
  children[octant, parent] = np.arange(len(cells), dtype=np.int32)
  return Coarsening(corner[first], children, parent, octant)


def neighbours(cells: np.ndarray, size: int = 3, stride: int = 1) -> np.ndarray:
  """Which cells are around each cell.

  Args:
    cells: `[n, 3]` integers, multiples of `stride`, each once, in any order; sorted by x, y, z, as
      `voxelize` sorts them, for networks on TPUs.
    size: of the window, odd.
    stride: of the level.

  Returns:
    `[size ** 3, n]` int32: in row `i + size * (j + size * k)` the rows of the cells at
    `(i, j, k) - size // 2` strides from each. Windows are symmetric, so row `-1 - r` is the
    opposite of row `r`: where one says that b is next to a, the other says that a is next to b.

  Raises:
    ValueError: a size that is even, cells that are not on the level or there twice.

  Examples:
    >>> table = neighbours(np.array([[0, 0, 0], [1, 0, 0]]))
    >>> table.shape, table[14].tolist()  # Row 14: the next cell in x.
    ((27, 2), [1, -1])
  """
  if size % 2 == 0:
    raise ValueError(f'size must be odd, got {size}')
  if np.any(cells % stride):
    raise ValueError(f'cells of a level of stride {stride} must be multiples of it')
  radius, count = size // 2, len(cells)
  keys, steps = _keys(cells // stride, margin=radius)
  order = np.argsort(keys, kind='stable')
  keys = keys[order]
  if np.any(keys[1:] == keys[:-1]):
    raise ValueError('cells must be there once each')
  rows = np.arange(count, dtype=np.int32)
  table = np.full((size**3, count), ABSENT, np.int32)
  table[size**3 // 2] = rows
  ends = np.append(keys, np.iinfo(np.int64).max)
  for i in range(radius, size):
    for j in range(size):
      if (i, j) < (radius, radius):
        continue  # The opposite half.
      # Cells of a column of z are next to each other: one search finds the first of them.
      wanted = keys + (i - radius) * steps[0] + (j - radius) * steps[1] - radius
      place = np.searchsorted(keys, wanted).astype(np.int32)
      for k in range(size):
        is_there = ends[place] == wanted + k
        if (i, j, k) > (radius, radius, radius):
          row, found = i + size * (j + size * k), place[is_there]
          table[row, is_there] = found
          table[-1 - row, found] = rows[is_there]
        place += is_there
  if np.array_equal(order, rows):
    return table
  in_given_order = np.empty_like(table)
  in_given_order[:, order] = np.where(table == ABSENT, ABSENT, order[table])
  return in_given_order


def levels(cells: np.ndarray, num_levels: int) -> list[Level]:
  """A scene as a network of `num_levels` resolutions sees it, the cells themselves first."""
  pyramid = Pyramid.build(cells, num_levels)
  links = (*pyramid.links, None)
  return [
    Level(cells, neighbours(cells, stride=2**level), link)
    for level, (cells, link) in enumerate(zip(pyramid.cells, links, strict=True))
  ]


def tables(
  pyramid: Pyramid, colors: np.ndarray, shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
  """What networks take of a scene: colours around its cells, and how these hang together.

  Args:
    pyramid: of the scene.
    colors: `[n, 3]` of its finest cells, levels 0..255.
    shapes: of the arrays by their names, those of a scene or larger ones, with N_l rows of level l.

  Returns:
    'windows': float32 `[N_0, 375]`, colours around each cell in [-1, 1], 0 where nothing is.
    'neighbours_l': int32 `[27, N_l]`, see `neighbours`.
    'children_l': int32 `[8, N_{l+1}]`, rows of level l in each cell of level l + 1.
    'place_l': int32 `[N_l]`, 8 times the row of the cell of level l + 1, plus the octant in it.
    Tables are `ABSENT` where there is no cell.

  Raises:
    ValueError: something is larger.
  """
  window = neighbours(pyramid.cells[0], WINDOW)
  found = {'neighbours_0': _core(window)}
  for level, cells in enumerate(pyramid.cells[1:], start=1):
    found[f'neighbours_{level}'] = neighbours(cells, stride=2**level)
  for level, link in enumerate(pyramid.links):
    found[f'children_{level}'] = link.children
    found[f'place_{level}'] = 8 * link.parent + link.octant
  result = pad(found, shapes)
  # Zeros take no time until they are written to.
  result['windows'] = np.zeros(shapes['windows'], np.float32)
  colors = colors.astype(np.float32) / np.float32(127.5) - np.float32(1)
  gather(colors, window, out=result['windows'][: len(colors)])
  return result


def pad(
  found: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
  """Puts arrays of a scene into others of a size that is given.

  Args:
    found: integers, behind which `ABSENT` is, and floats, behind which 0 is.
    shapes: of arrays of those names.

  Raises:
    ValueError: something is larger.
  """
  padded = {}
  for name, x in found.items():
    most = tuple(shapes[name])
    if any(length > side for length, side in zip(x.shape, most, strict=True)):
      raise ValueError(f'{name} of the scene is {list(x.shape)}, at most it may be {list(most)}')
    padded[name] = np.full(most, 0 if x.dtype.kind == 'f' else ABSENT, x.dtype)
    padded[name][tuple(map(slice, x.shape))] = x
  return padded


def gather(features: np.ndarray, table: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
  """What is around each cell, side by side: 0 where nothing is.

  Args:
    features: `[n, channels]`.
    table: `[window, m]` rows of them.
    out: contiguous array of the result's shape and the features' dtype, to write to.

  Returns:
    `[m, window * channels]`.
  """
  window, count = table.shape
  extended = np.append(features, np.zeros_like(features[:1]), axis=0)
  if out is None:
    out = np.empty((count, window * features.shape[1]), features.dtype)
  # ABSENT is the last row.
  np.take(extended, table.T, axis=0, out=out.reshape(count, window, -1), mode='wrap')
  return out


def means(values: np.ndarray, groups: np.ndarray, count: int = 0) -> np.ndarray:
  """Averages by group, such as the places of supervoxels.

  Args:
    values: `[n, channels]`.
    groups: `[n]`, numbers from 0 on.
    count: of groups; that of those that occur, or more.

  Returns:
    `[count, channels]` float64, 0 for a group that does not occur.
  """
  sums = np.stack([np.bincount(groups, channel, count) for channel in values.T], axis=1)
  return sums / np.maximum(np.bincount(groups, minlength=count), 1)[:, None]


def _core(window: np.ndarray) -> np.ndarray:
  """The table of windows of 3 cells in that of `WINDOW`."""
  cut = slice(WINDOW // 2 - 1, WINDOW // 2 + 2)
  return window.reshape(WINDOW, WINDOW, WINDOW, -1)[cut, cut, cut].reshape(27, -1)


def _keys(cells: np.ndarray, margin: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """One number for each cell, in the order of x, y, z, and what a step along each axis adds.

  Cells up to `margin` steps away have numbers of their own.
  """
  least = cells.min(axis=0).astype(np.int64)
  sides = cells.max(axis=0).astype(np.int64) - least + 1 + 2 * margin
  if np.prod(sides.astype(float)) >= 2.0**62:
    raise ValueError(f'a scene of {" x ".join(map(str, sides))} cells is too large')
  steps = np.array([sides[1] * sides[2], sides[2], 1])
  return (cells - least + margin) @ steps, steps


def _fnv(cells: np.ndarray) -> np.ndarray:
  """The original's hash of cells: as FNV's, but whole coordinates in place of bytes."""
  result = np.full(len(cells), 14695981039346656037, np.uint64)
  for axis in range(3):
    result *= np.uint64(1099511628211)
    result ^= cells[:, axis].astype(np.uint64)
  return result
