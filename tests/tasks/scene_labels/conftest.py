"""What tests of scene labels share: small scenes of plain colours, and tiny networks."""

import numpy as np
from PIL import Image
import pytest

from crossattn_jax import models, tasks
from crossattn_jax.data.scene_points import batches, sources
from crossattn_jax.training import config as config_lib

CLASSES = ('floor', 'wall', 'box')
_COLORS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)
_SIDE = 0.1  # Of a voxel, in metres.


def make_scene(seed: int, held: tuple[int, ...]) -> tuple[sources.Scene, list[Image.Image]]:
  """A floor, a wall or a box of some of the classes, two points a voxel, and four photographs."""
  rng = np.random.default_rng(seed)
  plane = np.stack(np.meshgrid(range(8), range(8), indexing='ij'), -1).reshape(-1, 2)
  cells = {
    0: np.insert(plane, 2, 0, axis=1),
    1: np.insert(plane[plane[:, 1] > 0], 0, 9, axis=1),
    2: np.array([[x, y, z] for x in (2, 3) for y in (3, 4) for z in (1, 2)]) + [seed % 3, 0, 0],
  }
  labels = np.concatenate([np.full(2 * len(cells[label]), label) for label in held])
  corners = np.concatenate([np.repeat(cells[label], 2, axis=0) for label in held])
  points = (corners + rng.uniform(0.1, 0.9, corners.shape)) * _SIDE
  # Halves of each class; one id has no point.
  supervoxels = 2 * labels + (corners[:, 1] > 3)
  supervoxels[supervoxels > 2] += 1
  colors = _COLORS[labels] + rng.integers(-20, 20, (len(labels), 3))
  mean = np.clip(_COLORS[list(held)].mean(0) + rng.normal(0, 10, (4, 12, 16, 3)), 0, 255)
  return (
    sources.Scene(
      points.astype(np.float32),
      np.clip(colors, 0, 255).astype(np.uint8),
      labels.astype(np.int32),
      supervoxels.astype(np.int32),
    ),
    [Image.fromarray(image.astype(np.uint8)) for image in mean],
  )


@pytest.fixture(scope='session')
def scenes() -> sources.MemorySource:
  """Eight scenes: every set of classes, and two more."""
  held = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2), (0, 2)]
  made = [make_scene(seed, each) for seed, each in enumerate(held)]
  names = [f'room_{seed}' for seed in range(len(made))]
  return sources.MemorySource([x for x, _ in made], CLASSES, [x for _, x in made], names)


@pytest.fixture(scope='session')
def small_config():
  """Scenes of up to 160 voxels with two photographs, and a network that compiles in seconds."""

  def make(name='mit_18a_r50', **fields):
    config = config_lib.default_config('scene_labels')
    dataset = config.dataset
    dataset.name, dataset.train_split, dataset.eval_split = 'room_scenes/tiny', 'train', 'train'
    dataset.class_names = CLASSES
    dataset.voxel_size = _SIDE
    dataset.buckets = ((208, 96, 48, 24, 16),)
    dataset.max_supervoxels = 8
    dataset.num_views, dataset.image_size = 2, (12, 16)
    dataset.augmentation.shift = 4
    network = {
      'mit_18a_r50': {'num_views': 2, 'decoder_depth': 2} | _POINTS | _IMAGES,
      'mit_points': _POINTS,
      'mit_images': {'num_views': 2, 'width': 8} | _IMAGES,
    }[name]
    shared = {'num_classes': 3, 'num_heads': 2, 'encoder_depth': 1}
    with config.unlocked():
      config.model = models.model_config(name, **shared, **network, **fields)
    return config

  return make


_POINTS = {'points_widths': (8,) * 8, 'points_depths': (1,) * 8, 'points_stem_width': 8}
_IMAGES = {'image_widths': (4, 4, 4, 8), 'image_depths': (1, 1, 1, 1), 'image_stem_width': 4}


@pytest.fixture(scope='session')
def make_task(small_config, scenes):
  """Builds a task on those scenes, whatever the split is called."""

  def make(config=None):
    config = config or small_config()
    task = tasks.create_task(config)
    task._examples['train'] = batches.SceneLabelExamples(config.dataset, 'train', scenes)
    return task

  return make
