"""Supervoxels: points of a scan in patches of one surface and one colour, by their geometry alone.

Patches grow as in the graph-based segmentation of Felzenszwalb and Huttenlocher (2004), here of
cells of a scan that are close to each other: an edge costs what the surface bends or steps there,
and what its colour changes. All regions grow at once along their cheapest edges (Boruvka's order),
so every step is one of arrays.
"""

import numpy as np
from scipy import sparse, spatial
from scipy.sparse import csgraph

from crossattn_jax.geometry import points as points_lib

# Closest cells that the direction of a surface is found from, and that edges lead to.
_PLANE, _EDGES = 16, 8
# Directions and colours are smoothed so often, where they differ by no more than about as much: the
# squares of sines, and of what changes of colour cost.
_ROUNDS, _ALIKE_BEND, _ALIKE_CHANGE = 3, 0.1, 0.03


def grow(
  points: np.ndarray,
  colors: np.ndarray,
  *,
  cell: float = 0.05,
  scale: float = 0.04,
  color_weight: float = 2.0,
  least: int = 8,
  longest: float = 1.0,
) -> np.ndarray:
  """Groups the points of a scan.

  Args:
    points: `[points, 3]` in metres.
    colors: `[points, 3]`, levels 0..255.
    cell: side in metres of the cells that points are averaged in; what is finer is not seen.
    scale: how much more than inside of them edges between patches may cost, divided by the number
      of cells of a patch: the larger, the larger are patches.
    color_weight: cost of an edge between black and white; a right angle costs 1.
    least: cells of a patch; smaller ones join the most similar one beside them.
    longest: side in metres of a patch along an axis; longer ones, such as floors and walls, are cut
      into equal parts. `np.inf` cuts none.

  Returns:
    int32 `[points]`, ids from 0, each of which exists; 0 is the largest patch.
  """
  voxels = points_lib.voxelize(points, np.eye(3) / cell)
  place = points_lib.means(points, voxels.inverse)
  # So that what an edge costs is the distance of its colours.
  color = points_lib.means(colors, voxels.inverse) * (color_weight / 255 / np.sqrt(3))
  count = len(place)
  # As many columns wherever there are few cells: those that are missing are far away.
  distance, near = spatial.cKDTree(place).query(place, np.arange(1, _PLANE + 2))
  near = np.where(near < count, near, np.arange(count)[:, None])
  normal, color = _smoothed(_normals(place[near]), color, near)
  edges = _edges(near[:, 1 : _EDGES + 1], distance[:, 1 : _EDGES + 1] <= 3 * cell)
  costs = _costs(place, normal, color, edges)
  region = _cut(_merged(edges, costs, count, scale), place, longest)
  region = _without_small(region, edges, costs, least)
  largest_first = np.argsort(-np.bincount(region[voxels.inverse]), kind='stable')
  rank = np.empty(len(largest_first), np.int32)
  rank[largest_first] = np.arange(len(rank), dtype=np.int32)
  return rank[region[voxels.inverse]]


def _normals(near: np.ndarray) -> np.ndarray:
  """Directions across surfaces `[n, 3]` through points `[n, k, 3]`, of either sign."""
  away = near - near.mean(axis=1, keepdims=True)
  _, vectors = np.linalg.eigh(np.einsum('nki,nkj->nij', away, away))
  return vectors[:, :, 0]


def _smoothed(
  normal: np.ndarray, color: np.ndarray, near: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Directions and colours averaged over cells nearby that are alike, so that edges stay sharp."""
  for _ in range(_ROUNDS):
    cosine = np.einsum('nki,ni->nk', normal[near], normal)
    change = np.square(color[near] - color[:, None]).sum(axis=2)
    weight = np.exp((np.square(cosine) - 1) / _ALIKE_BEND - change / _ALIKE_CHANGE)
    normal = np.einsum('nk,nki->ni', weight * np.sign(cosine), normal[near])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    color = np.einsum('nk,nki->ni', weight, color[near]) / weight.sum(axis=1, keepdims=True)
  return normal, color


def _edges(near: np.ndarray, is_close: np.ndarray) -> np.ndarray:
  """Pairs `[e, 2]` of cells that are close to each other, each once."""
  rows = np.repeat(np.arange(len(near)), near.shape[1]).reshape(near.shape)
  return np.unique(np.sort(np.stack([rows[is_close], near[is_close]], axis=1), axis=1), axis=0)


def _costs(place, normal, color, edges) -> np.ndarray:
  """How little the cells at both ends of each edge belong together."""
  one, other = edges.T
  step = place[other] - place[one]
  step /= np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-12)
  bend = 1 - np.abs(np.einsum('ei,ei->e', normal[one], normal[other]))
  rise = np.maximum(*(np.square(np.einsum('ei,ei->e', normal[end], step)) for end in (one, other)))
  return bend + rise + np.linalg.norm(color[one] - color[other], axis=1)


def _merged(edges: np.ndarray, costs: np.ndarray, count: int, scale: float) -> np.ndarray:
  """Regions of `count` cells: no edge between two is cheap beside those inside of both."""
  region, size, inside = np.arange(count), np.ones(count), np.zeros(count)
  order = np.argsort(costs, kind='stable')
  edges, costs = edges[order], costs[order]
  while True:
    ends = region[edges]
    apart = ends[:, 0] != ends[:, 1]
    edges, costs, ends = edges[apart], costs[apart], ends[apart]
    allowed = costs <= (inside + scale / size)[ends].min(axis=1)
    if not allowed.any():
      return region
    chosen = _cheapest(ends[allowed])
    region, size, inside = _joined(
      region, size, inside, ends[allowed][chosen], costs[allowed][chosen]
    )


def _cheapest(ends: np.ndarray) -> np.ndarray:
  """Rows of the first edge of each region, of edges in ascending order of cost."""
  _, first = np.unique(ends.T.ravel(), return_index=True)
  return np.unique(first % len(ends))


def _joined(region, size, inside, ends, costs):
  """Joins regions along edges: the region of each cell, sizes, and the dearest edge inside."""
  count = len(size)
  graph = sparse.coo_array((np.ones(len(ends)), ends.T), shape=(count, count))
  number, label = csgraph.connected_components(graph, directed=False)
  dearest = np.zeros(number)
  np.maximum.at(dearest, label, inside)
  np.maximum.at(dearest, label[ends[:, 0]], costs)
  return label[region], np.bincount(label, size, number), dearest


def _cut(region: np.ndarray, place: np.ndarray, longest: float) -> np.ndarray:
  """Cuts regions of cells at `place` along each axis, into equal parts of at most `longest`."""
  low, high = (np.full((region.max() + 1, 3), far) for far in (np.inf, -np.inf))
  np.minimum.at(low, region, place)
  np.maximum.at(high, region, place)
  parts = np.maximum(np.ceil((high - low) / longest), 1)
  share = (place - low[region]) / np.maximum(high - low, 1e-12)[region]
  part = np.minimum(share * parts[region], parts[region] - 1).astype(int)
  return np.unique(np.column_stack([region, part]), axis=0, return_inverse=True)[1].ravel()


def _without_small(region, edges, costs, least: int) -> np.ndarray:
  """Joins regions of fewer than `least` cells with those beside them, along cheapest edges."""
  order = np.argsort(costs, kind='stable')
  edges, costs = edges[order], costs[order]
  while True:
    size = np.bincount(region)
    ends = region[edges]
    apart = (ends[:, 0] != ends[:, 1]) & (size[ends] < least).any(axis=1)
    if not apart.any():
      return region
    edges, costs, ends = edges[apart], costs[apart], ends[apart]
    small = np.where(size < least)[0]
    # The first edge of each small region.
    names, first = np.unique(ends.T.ravel(), return_index=True)
    chosen = np.unique(first[np.isin(names, small)] % len(ends))
    region, *_ = _joined(region, size, np.zeros(len(size)), ends[chosen], costs[chosen])
