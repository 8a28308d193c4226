"""The recipes of detection state the facts of their papers."""

import jax
import numpy as np
import pytest

from configs import mask_rcnn_coco, retinanet_coco
from crossattn_jax import models, tasks
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import optimizers, schedules

STEPS_PER_EPOCH = 7330
PUBLISHED = [
  (retinanet_coco, 'crossformer_small'),
  (retinanet_coco, 'crossformer_base'),
  (retinanet_coco, 'crossformer_pp_small'),
  (retinanet_coco, 'crossformer_pp_base'),
  (retinanet_coco, 'biformer_small'),
  (retinanet_coco, 'biformer_base'),
  (mask_rcnn_coco, 'crossformer_small'),
  (mask_rcnn_coco, 'crossformer_small,3x'),
  (mask_rcnn_coco, 'crossformer_base'),
  (mask_rcnn_coco, 'crossformer_base,3x'),
  (mask_rcnn_coco, 'crossformer_large'),
  (mask_rcnn_coco, 'crossformer_pp_small'),
  (mask_rcnn_coco, 'crossformer_pp_base'),
  (mask_rcnn_coco, 'biformer_small'),
  (mask_rcnn_coco, 'biformer_base'),
  (mask_rcnn_coco, 'swiftformer_l1'),
  (mask_rcnn_coco, 'swiftformer_l3'),
]


@pytest.mark.parametrize(
  ('experiment', 'argument'), PUBLISHED, ids=lambda x: getattr(x, '__name__', x)
)
def test_every_published_detector_is_a_valid_experiment(experiment, argument):
  config = experiment.get_config(argument)
  config_lib.validate(config)
  task = tasks.create_task(config)
  # Without the data, classes have no names.
  assert (task.class_names[:2], len(task.category_ids)) == (('0', '1'), 80)
  shapes = task.batch_spec(2)
  assert shapes['image'].shape == (2, 800, 1344, 3)
  assert ('masks' in shapes) == (experiment is mask_rcnn_coco)


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('crossformer_small,2x', "the schedule is '2x'; it must be 1x or 3x"),
    (
      'crosformer_small',
      r"unknown model 'crosformer_small\+retinanet'; did you mean",
    ),
  ],
)
def test_a_wrong_argument_is_said(argument, message):
  with pytest.raises(ValueError, match=message):
    retinanet_coco.get_config(argument)


@pytest.mark.parametrize(
  ('argument', 'base', 'drops'),
  [
    ('crossformer_small', 1e-4, (8, 11)),
    ('crossformer_base,3x', 1e-4, (27, 33)),
    ('swiftformer_l1', 2e-4, (8, 11)),
  ],
)
def test_the_rate_is_that_of_mmcv(argument, base, drops):
  """Linear warm-up by updates from a ratio, then a tenth after each of two epochs."""
  config = mask_rcnn_coco.get_config(argument)
  ratio = 1e-6 if argument == 'swiftformer_l1' else 1e-3
  first, second = (epoch * STEPS_PER_EPOCH for epoch in drops)
  steps = np.array([0, 1, 250, 499, 500, first - 1, first, second - 1, second])
  with jax.enable_x64(True):
    schedule = schedules.create_schedule(
      config.schedule,
      base_lr=schedules.scaled_learning_rate(config.schedule, config.batch_size),
      total_steps=round(config.num_epochs * STEPS_PER_EPOCH),
      steps_per_epoch=STEPS_PER_EPOCH,
    )
    rates = [float(schedule(step)) for step in steps]
  warm = 1 - (1 - np.minimum(steps / 500, 1)) * (1 - ratio)
  decay = [1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.01]
  np.testing.assert_allclose(rates, base * warm * decay, rtol=1e-9)


def decayed(experiment):
  """Whether each parameter decays, of a small BiFormer."""
  config = experiment.get_config('biformer_small')
  small = {'widths': (32, 64, 96, 128), 'depths': (1, 1, 1, 1), 'global_heads': 4}
  model = models.create_model(**{**config.model, **small})
  image = jax.ShapeDtypeStruct((1, 256, 256, 3), np.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  settings = optimizers.parameter_settings(config.optimizer, params)
  return {path: setting.decayed for path, setting in settings.items()}


@pytest.mark.extended
def test_weights_decay_but_norms_of_tokens_where_the_recipe_says_so():
  assert all(decayed(retinanet_coco).values())
  found = decayed(mask_rcnn_coco)
  assert not found['backbone/stage_0/block_0/norm1/scale']
  assert not found['backbone/output_norm_3/bias']
  # Called downsample_layers.1.1 there.
  assert found['backbone/downsampling_1/norm/scale']
  others = {path for path, value in found.items() if not value}
  assert all(path.startswith('backbone/') and 'norm' in path for path in others)
