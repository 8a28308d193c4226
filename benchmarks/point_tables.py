r"""How many voxels a second one core makes tables for, and training examples.

  python -m benchmarks.point_tables [--points 3000000] [--repeats 5]

A room of flat walls, floor and boxes, at 2 cm: sorting points into voxels, the tables of 27
neighbours of the finest level, and those of all five levels. Then a scan of 150,000 points of a
smaller room, as those of ScanNet: whole training examples of it, at 5 cm and at 2 cm, where shapes
and colours are distorted as in the published training; and its supervoxels. Processor time of the
fastest run.
"""

import argparse
from collections.abc import Callable
import time

import numpy as np

from crossattn_jax.data.scene_points import augmentation, batches, sources, tables
from crossattn_jax.geometry import points as points_lib
from crossattn_jax.geometry import supervoxels

_SCAN, _SCAN_SCALE = 150_000, 0.45


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


def scan() -> sources.Scene:
  """Points of a room of 4 x 3 x 1.4 metres."""
  points = (_SCAN_SCALE * room(_SCAN)).astype(np.float32)
  colors = np.random.default_rng(0).integers(0, 256, points.shape, np.uint8)
  return sources.Scene(points, colors, np.zeros(len(points), np.int32))


def examples(scene: sources.Scene, voxel_size: float) -> batches.SegmentationExamples:
  """Training examples of a scene, padded to a bucket about as large as it."""
  config = batches.default_config()
  config.voxel_size, config.class_names = voxel_size, ('room',)
  source = sources.MemorySource([scene], config.class_names)
  most = batches.SegmentationExamples(config, 'train', source).widest_rows(0)
  config.buckets = (tables.rounded_up(most),)
  if voxel_size < 0.05:
    config.augmentation.update(augmentation.published())
  return batches.SegmentationExamples(config, 'train', source)


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
  scene = scan()
  for voxel_size in (0.05, 0.02):
    made = examples(scene, voxel_size)
    count = len(made.voxels(0).cells)
    taken = seconds(lambda: made.train_example(0, np.random.default_rng(0)), args.repeats)  # noqa: B023
    rate = f'{1 / taken:6.2f} a second, {count:,} voxels'
    print(f'examples at {voxel_size:.2f} m   {taken:6.2f} s  {rate}')
  taken = seconds(lambda: supervoxels.grow(scene.points, scene.colors), args.repeats)
  print(f'supervoxels          {taken:6.2f} s')


if __name__ == '__main__':
  main()
