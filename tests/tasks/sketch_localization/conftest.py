"""What tests of sketch localization share: tiny scenes, a tiny model, a task that knows."""

import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models, tasks
from crossattn_jax.data.scenes import dataset
from crossattn_jax.heads.detection import types
from crossattn_jax.training import config as config_lib

# Two stages, and two levels of which the sketch has refined the last one.
TINY = {
  'width': 32,
  'depths': (1, 1),
  'num_heads': (1, 2),
  'window': 2,
  'mlp_ratio': 1,
  'det_stages': (1,),
  'num_queries': 8,
  'channels': 32,
  'num_layers': 1,
  'decoder_heads': 2,
  'num_points': 1,
  'decoder_hidden': 32,
  'fusion_heads': 2,
  'fusion_hidden': 32,
  'first_level': 1,
  'sketch_depths': (1,),
  'sketch_widths': (8,),
}


@pytest.fixture(scope='session')
def scenes_dir(tmp_path_factory) -> str:
  data_dir = str(tmp_path_factory.mktemp('tfds'))
  dataset.prepare('shape_scenes/tiny', data_dir)
  return data_dir


@pytest.fixture(scope='session')
def small_config(scenes_dir):
  """Scenes of 64 x 64 pixels of whose shapes stars are never learnt, and a tiny model."""

  def make(**fields):
    config = config_lib.default_config('sketch_localization')
    config.dataset.name, config.dataset.data_dir = 'shape_scenes/tiny', scenes_dir
    config.dataset.image_size, config.dataset.max_boxes = (64, 64), 8
    config.dataset.unseen_classes = ('star',)
    config.dataset.evaluation.queries = 'all'
    config.dataset.sketches.name, config.dataset.sketches.size = 'shape_scenes', 32
    with config.unlocked():
      config.model = models.model_config('sketch_localizer_tiny', **{**TINY, **fields})
    tasks.complete_config(config)
    return config

  return make


@pytest.fixture(scope='session')
def knowing_task(small_config):
  """A task that finds what is there, in pixels of the files, or what `change` makes of it.

  `change` gets the name of the category, and boxes and scores.
  """

  def make(change=lambda category, *found: found):
    task = tasks.create_task(small_config())
    source = task.examples('validation').source
    rows = []
    for index in range(len(source)):
      boxes = source.annotations(index).boxes
      category = source.categories[source.category(index)]
      boxes, scores = change(category, boxes, np.linspace(1, 0.5, len(boxes)))
      found = boxes, scores, np.zeros(len(boxes), np.int32)
      rows.append([_padded(x, fill) for x, fill in zip(found, (0, 0, -1), strict=True)])
    boxes, scores, labels = (jnp.stack(x) for x in zip(*rows, strict=True))

    def find(variables, batch):
      at = batch['index']
      return types.Detections(boxes[at], scores[at], labels[at]), variables['finite'][at], {}

    task.find = find
    return task, {'finite': jnp.ones(len(source), bool)}

  return make


def _padded(x, fill, count=8):
  x = np.asarray(x, np.int32 if fill else np.float32)
  return np.concatenate([x, np.full((count - len(x), *x.shape[1:]), fill, x.dtype)])
