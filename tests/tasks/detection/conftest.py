"""What tests of detection share: tiny scenes, and a task whose network knows the truth."""

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
  """Detectors of 64 x 64 pixel scenes that compile in seconds."""

  def make(head='retinanet', **fields):
    if head == 'mask_rcnn':
      few = {'candidates': 50, 'training_candidates': 50, 'max_proposals': 50}
      fields |= few | {'sampled_regions': 16, 'mask_channels': 8, 'mask_convs': 1}
    config = config_lib.default_config('detection')
    config.dataset.name, config.dataset.data_dir = 'shape_scenes/tiny', scenes_dir
    config.dataset.image_size = (64, 64)
    config.dataset.max_boxes = 8
    config.dataset.masks = head == 'mask_rcnn'
    with config.unlocked():
      config.model = models.model_config(
        f'resnet50_deep_stem+{head}',
        depths=(1, 1, 1, 1),
        widths=(4, 4, 8, 8),
        stem_widths=(4, 4, 8),
        pyramid_channels=8,
        head_channels=8,
        **fields,
      )
    tasks.complete_config(config)
    return config

  return make


@pytest.fixture(scope='session')
def knowing_task(small_config):
  """A task that finds what is there; what `change` makes of it, which gets lists of arrays.

  Boxes, scores, labels and masks are those of the `types.Detections` of an image.
  """

  def make(head='retinanet', change=lambda *found: found):
    task = tasks.create_task(small_config(head))
    source = task.examples('validation').source
    rows = []
    for index in range(len(source)):
      objects = source.annotations(index)
      count = len(objects)
      masks = [_cut(m, b) for m, b in zip(objects.masks(), objects.boxes, strict=True)]
      found = change(objects.boxes, np.linspace(1, 0.5, count), objects.labels, np.array(masks))
      rows.append([_padded(x, fill) for x, fill in zip(found, (0, 0, -1, 0), strict=True)])
    boxes, scores, labels, masks = (jnp.stack(x) for x in zip(*rows, strict=True))

    def detect(variables, batch):
      at = batch['index']
      finite = variables['finite'][at]
      found = types.Detections(boxes[at], scores[at], labels[at], masks[at])
      return found if head == 'mask_rcnn' else found.replace(masks=None), finite

    task.detect = detect
    return task, {'finite': jnp.ones(len(source), bool)}

  return make


def _cut(mask, box, side=56):
  """The mask in its box, a number for each of `side` x `side` cells."""
  x, y = (
    low + (np.arange(side) + 0.5) / side * (high - low) for low, high in (box[::2], box[1::2])
  )
  return mask[np.ix_(y.astype(int), x.astype(int))].astype(np.float32)


def _padded(x, fill, count=12):
  x = np.asarray(x, np.int32 if fill else np.float32)
  return np.concatenate([x, np.full((count - len(x), *x.shape[1:]), fill, x.dtype)])
