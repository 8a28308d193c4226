"""What tests of sketch localization share: tiny scenes, and a model that compiles in seconds."""

import pytest

from crossattn_jax import models, tasks
from crossattn_jax.data.scenes import dataset
from crossattn_jax.training import config as config_lib

# Three levels, the last of which the sketch has refined.
TINY = {
  'width': 32,
  'depths': (1, 1, 1, 1),
  'num_heads': (1, 1, 2, 2),
  'window': 2,
  'mlp_ratio': 1,
  'num_queries': 8,
  'channels': 32,
  'num_layers': 2,
  'decoder_heads': 2,
  'num_points': 1,
  'decoder_hidden': 32,
  'fusion_heads': 2,
  'fusion_hidden': 32,
  'first_level': 2,
  'sketch_depths': (1, 1, 1, 1),
  'sketch_widths': (8, 8, 8, 8),
}


@pytest.fixture(scope='session')
def scenes_dir(tmp_path_factory) -> str:
  data_dir = str(tmp_path_factory.mktemp('tfds'))
  dataset.prepare('shape_scenes/tiny', data_dir)
  return data_dir


@pytest.fixture(scope='session')
def small_config(scenes_dir):
  """Scenes of 64 x 64 pixels, of whose shapes one is never learnt."""

  def make(**fields):
    config = config_lib.default_config('sketch_localization')
    dataset = config.dataset
    dataset.name, dataset.data_dir = 'shape_scenes/tiny', scenes_dir
    dataset.image_size, dataset.max_boxes = (64, 64), 8
    dataset.unseen_classes = ('star',)
    dataset.sketches.name, dataset.sketches.size = 'shape_scenes', 32
    with config.unlocked():
      config.model = models.model_config('sketch_localizer_tiny', **{**TINY, **fields})
    tasks.complete_config(config)
    return config

  return make
