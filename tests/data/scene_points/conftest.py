"""Rooms of a few hundred points in memory."""

import ml_collections
import numpy as np
from PIL import Image
import pytest

from crossattn_jax.data.scene_points import batches, sources

NAMES = ('floor', 'wall', 'box')


def make_room(seed: int, side: float = 1.2) -> sources.Scene:
  """A floor, a wall, and in every second room a box, at about 15 points on 10 cm."""
  rng = np.random.default_rng(seed)
  count = int(400 * side**2)
  floor = np.append(rng.uniform(0, side, (count, 2)), np.zeros((count, 1)), axis=1)
  wall = rng.uniform(0, side, (count, 3)) * [1, 0, 1]
  box = rng.uniform(0.3, 0.6, (60 * (seed % 2), 3))
  points = np.concatenate([floor, wall, box]).astype(np.float32)
  labels = np.repeat(np.arange(3, dtype=np.int32), [count, count, len(box)])
  colors = (60 + 60 * labels[:, None] + rng.integers(0, 20, (len(points), 3))).astype(np.uint8)
  return sources.Scene(points, colors, labels, 2 * labels)


@pytest.fixture
def room() -> sources.Scene:
  """A room with a box."""
  return make_room(1)


@pytest.fixture
def source() -> sources.MemorySource:
  """Eight rooms of two sizes, with four photographs of one colour each."""
  rooms = [make_room(seed, 1.2 if seed < 6 else 2.4) for seed in range(8)]
  images = [[Image.new('RGB', (8, 6), (40 * k, 0, 10 * n)) for k in range(4)] for n in range(8)]
  return sources.MemorySource(rooms, NAMES, images)


@pytest.fixture
def config() -> ml_collections.ConfigDict:
  """Of those rooms."""
  config = batches.default_config()
  config.name, config.train_split, config.eval_split = 'memory', 'train', 'val'
  config.class_names = NAMES
  config.voxel_size = 0.1
  config.buckets = ((640, 256, 96, 48, 32), (2048, 640, 192, 96, 48))
  config.num_views, config.image_size, config.max_supervoxels = 2, (6, 8), 8
  config.num_threads = 1
  return config
