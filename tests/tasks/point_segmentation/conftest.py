"""What tests of point segmentation share: rooms of a few hundred points, a tiny model."""

import jax
import numpy as np
import pytest

from crossattn_jax import models, tasks
from crossattn_jax.data.scene_points import batches, sources
from crossattn_jax.training import config as config_lib

NAMES = ('floor', 'wall', 'box', 'lamp')
TINY = {'widths': (4, 4, 8, 8, 8, 8, 4, 4), 'depths': (0, 1, 0, 0, 0, 0, 1, 0), 'stem_width': 4}


def make_room(seed: int) -> sources.Scene:
  """A floor and a wall of 1.2 m, and a box; some points have no class, and nothing is a lamp."""
  rng = np.random.default_rng(seed)
  floor = rng.uniform(0, 1.2, (300, 3)) * [1, 1, 0]
  wall = rng.uniform(0, 1.2, (300, 3)) * [1, 0, 1]
  box = rng.uniform(0.3, 0.7, (40 + 40 * seed, 3))
  points = np.concatenate([floor, wall, box]).astype(np.float32)
  labels = np.repeat(np.arange(3, dtype=np.int32), [300, 300, len(box)])
  colors = (60 + 60 * labels[:, None] + rng.integers(20, size=(len(points), 3))).astype(np.uint8)
  return sources.Scene(points, colors, np.where(rng.random(len(labels)) < 0.1, -1, labels))


@pytest.fixture(scope='session')
def rooms() -> list[sources.Scene]:
  return [make_room(seed) for seed in range(3)]


@pytest.fixture
def make_task(rooms, monkeypatch):
  """Builds the task of a config for three rooms in memory, each split the same."""
  source = sources.MemorySource(rooms, NAMES)
  monkeypatch.setattr(batches.Examples, 'open_source', staticmethod(lambda config, split: source))
  return tasks.create_task


@pytest.fixture
def small_config():
  config = config_lib.default_config('point_segmentation')
  dataset = config.dataset
  dataset.name, dataset.train_split, dataset.eval_split = 'memory', 'train', 'val'
  dataset.class_names, dataset.voxel_size = NAMES, 0.15
  dataset.buckets = ((256, 96, 32, 16, 16),)
  dataset.num_threads = 1
  with config.unlocked():
    config.model = models.model_config('minkunet14a', num_classes=len(NAMES), **TINY)
  return config


@pytest.fixture(scope='session')
def random_variables():
  """Of a network that says something; nothing is compiled."""

  def make(task):
    rng = np.random.default_rng(0)

    def fill(path, leaf):
      fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
      values = rng.standard_normal(leaf.shape) / np.sqrt(fan_in) + ('scale' in str(path[-1]))
      return (np.abs(values) + 0.5 if 'var' in str(path[-1]) else values).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(task.init, jax.random.key(0)))

  return make
