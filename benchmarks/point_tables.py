r"""How many voxels a second one core makes tables for.

  python -m benchmarks.point_tables [--points 3000000] [--repeats 5]

A room of flat walls, floor and boxes, at 2 cm: sorting points into voxels, the tables of 27
neighbours of the finest level, and those of all five levels. Processor time of the fastest run.
"""

import argparse
from collections.abc import Callable
import time

import numpy as np

from crossattn_jax.geometry import points as points_lib


def room(count: int, seed: int = 0) -> np.ndarray:
  """`[count, 3]` points in metres on the faces of boxes in a room of 9 x 7 x 3."""
  rng = np.random.default_rng(seed)
  corners, sides = [np.zeros(3)], [np.array([9.0, 7.0, 3.0])]
  for _ in range(20):
    side = rng.uniform(0.3, 1.5, 3)
    corners.append(np.append(rng.uniform(0, [9, 7] - side[:2]), 0.0))
    sides.append(side)
  corners, sides = np.stack(corners), np.stack(sides)
  area = np.stack([sides.prod(axis=1) / sides[:, axis] for axis in range(3)], axis=1)
  face = rng.choice(area.size, count, p=(area / area.sum()).ravel())
  box, axis = np.divmod(face, 3)
  inside = rng.random((count, 3))
  inside[np.arange(count), axis] = rng.integers(0, 2, count)
  return corners[box] + inside * sides[box]


def colored_cells() -> tuple[np.ndarray, np.ndarray]:
  """15,000 cells of the room, `[n, 3]`, and a colour of each."""
  cells = points_lib.voxelize(room(400_000), np.eye(3) / 0.145).cells
  return cells, np.random.default_rng(0).uniform(-1, 1, (len(cells), 3)).astype(np.float32)


def seconds(call: Callable[[], object], repeats: int) -> float:
  """Processor time of the fastest of some calls."""
  times = []
  for _ in range(repeats):
    start = time.process_time()
    call()
    times.append(time.process_time() - start)
  return min(times)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--points', type=int, default=3_000_000)
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  cloud, scale = room(args.points), np.eye(3) / 0.02
  voxels = points_lib.voxelize(cloud, scale)
  count = len(voxels.cells)
  print(f'{count:,} voxels of {args.points:,} points')
  for name, call in {
    'voxels': lambda: points_lib.voxelize(cloud, scale),
    'neighbours, 27': lambda: points_lib.neighbours(voxels.cells),
    'tables of 5 levels': lambda: points_lib.levels(voxels.cells, 5),
  }.items():
    taken = seconds(call, args.repeats)
    print(f'{name:20} {taken:6.2f} s  {count / taken / 1e6:6.2f} million voxels a second')


if __name__ == '__main__':
  main()
