"""What tests of paired detection share: pairs of tiny scenes, a tiny network, one that knows."""

import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models, tasks
from crossattn_jax.data.scenes import dataset
from crossattn_jax.heads.detection import types
from crossattn_jax.training import config as config_lib


@pytest.fixture(scope='session')
def scenes_dir(tmp_path_factory) -> str:
  data_dir = str(tmp_path_factory.mktemp('tfds'))
  dataset.prepare('shape_scenes/tiny', data_dir)
  return data_dir


@pytest.fixture(scope='session')
def small_config(scenes_dir):
  """Pairs of 64 x 64 pixels, and a network that compiles in seconds."""

  def make(**fields):
    config = config_lib.default_config('paired_detection')
    config.dataset.name, config.dataset.data_dir = 'shape_scenes/tiny', scenes_dir
    config.dataset.image_size = (64, 64)
    config.dataset.max_boxes = 16
    config.dataset.evaluation.rectangular = False
    with config.unlocked():
      config.model = models.model_config(
        'icafusion_n',
        widths=(8, 8, 8, 8, 8),
        depths=(1, 1, 1, 1),
        neck_widths=(8,) * 8,
        neck_depth=1,
        grids=((4, 4), (3, 3), (2, 2)),
        num_heads=2,
        mlp_ratio=1,
        **fields,
      )
    tasks.complete_config(config)
    return config

  return make


@pytest.fixture(scope='session')
def knowing_task(small_config):
  """A task that finds what is there in arrays of 96 x 128 pixels, where it looks at their corner.

  `change` makes something else of it; it gets boxes in pixels of the files, scores and labels.
  """

  def make(change=lambda *found: found):
    config = small_config()
    config.dataset.image_size = (96, 128)
    task = tasks.create_task(config)
    source = task.examples('validation').source
    rows = []
    for index in range(len(source)):
      objects = source.annotations(index)
      boxes, *rest = change(objects.boxes, np.linspace(1, 0.5, len(objects)), objects.labels)
      found = (boxes * 1.5 + [16, 0, 16, 0], *rest)
      rows.append([_padded(x, fill) for x, fill in zip(found, (0, 0, -1), strict=True)])
    boxes, scores, labels = (jnp.stack(x) for x in zip(*rows, strict=True))

    def find(variables, batch, attention=0):
      at = batch['index']
      # From the third row and column of cells of the scene, beside its border of two, to its first.
      here, there = (
        jnp.zeros((len(at), attention, 12, 16)).at[:, :, y, x].set(1) for y, x in ((2, 4), (0, 2))
      )
      looks = {'rgb': there, 'thermal': there[..., ::-1], 'query': here} if attention else {}
      return types.Detections(boxes[at], scores[at], labels[at]), variables['finite'][at], looks

    task.find = find
    return task, {'finite': jnp.ones(len(source), bool)}

  return make


def _padded(x, fill, count=12):
  x = np.asarray(x, np.int32 if fill else np.float32)
  return np.concatenate([x, np.full((count - len(x), *x.shape[1:]), fill, x.dtype)])
