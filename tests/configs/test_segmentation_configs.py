"""The recipes of segmentation state the facts of their papers."""

import jax
import numpy as np
import pytest

from configs import ccnet_ade20k, ccnet_cityscapes, segmentation_ade20k
from crossattn_jax import models, tasks
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import optimizers, schedules

PUBLISHED = [
  f'{system}_{size}+{head}'
  for system, sizes in {
    'crossformer': ('small', 'base', 'large', 'pp_small', 'pp_base', 'pp_large'),
    'biformer': ('small', 'base'),
    'swiftformer': ('l1', 'l3'),
  }.items()
  for size in sizes
  for head in ('semantic_fpn', 'upernet')
]


def rates(config, steps):
  with jax.enable_x64(True):
    schedule = schedules.create_schedule(
      config.schedule,
      base_lr=schedules.scaled_learning_rate(config.schedule, config.batch_size),
      total_steps=config.num_steps,
      steps_per_epoch=1000,
    )
    return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize('network', PUBLISHED)
def test_every_published_backbone_and_head_is_a_valid_experiment(network):
  config = segmentation_ade20k.get_config(network)
  config_lib.validate(config)
  task = tasks.create_task(config)
  assert task.model.num_classes == 150
  assert task.batch_spec(2)['image'].shape == (2, 512, 512, 3)


@pytest.mark.parametrize('model', models.list_models('ccnet_*') + ['pspnet_resnet101'])
@pytest.mark.parametrize('experiment', [ccnet_cityscapes, ccnet_ade20k])
def test_every_model_of_ccnets_repository_is_a_valid_experiment(experiment, model):
  config = experiment.get_config(model)
  config_lib.validate(config)
  tasks.create_task(config)


@pytest.mark.parametrize('network', ['biformer_small+upernet', 'crossformer_small+upernet'])
def test_upernet_decays_everything_but_norms_of_tokens(network):
  config = segmentation_ade20k.get_config(network)
  config.model.update(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1))
  if network.startswith('biformer'):
    config.model.global_heads = 4
  config.dataset.image_size = (128, 128)
  task = tasks.create_task(config)
  params = jax.eval_shape(task.init, jax.random.key(0))['params']
  settings = optimizers.parameter_settings(config.optimizer, params)
  decayed = {path: setting.decayed for path, setting in settings.items()}
  assert not decayed['backbone/stage_0/block_0/norm1/scale']
  assert not decayed['backbone/stage_3/block_0/norm2/bias']
  assert decayed['backbone/stage_0/block_0/mlp/fc1/bias']
  assert decayed['decoder/fusion/norm/scale']
  if network.startswith('crossformer'):
    # Batch norms in BiFormer.
    assert not decayed['backbone/downsampling_1/norm/scale']
    assert not decayed['backbone/embedding/norm/scale']
  others = {path for path, value in decayed.items() if not value}
  assert all(path.startswith('backbone/') and 'norm' in path for path in others)


def test_the_schedules_are_those_of_mmcv():
  steps = np.array([0, 500, 1000, 40_000, 79_999])
  actual = rates(segmentation_ade20k.get_config('biformer_small+semantic_fpn'), steps)
  cosine = 2e-12 + (2e-4 - 2e-12) * (1 + np.cos(np.pi * steps / 80_000)) / 2
  warm = np.minimum(0.1 + 0.9 * steps / 1000, 1)
  np.testing.assert_allclose(actual, cosine * warm, rtol=1e-5)

  steps = np.array([0, 750, 1500, 80_000, 159_999])
  actual = rates(segmentation_ade20k.get_config('crossformer_base+upernet'), steps)
  warm = np.minimum(1e-6 + (1 - 1e-6) * steps / 1500, 1)
  np.testing.assert_allclose(actual, 6e-5 * (1 - steps / 160_000) * warm, rtol=1e-9)

  steps = np.array([0, 1, 30_000, 59_999])
  actual = rates(ccnet_cityscapes.get_config(), steps)
  np.testing.assert_allclose(actual, 1e-2 * (1 - steps / 60_000) ** 0.9, rtol=1e-9)
