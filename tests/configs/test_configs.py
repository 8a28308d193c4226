"""Every experiment is complete and valid, and states the facts of its recipe."""

import importlib
import pathlib

import jax
import numpy as np
import pytest

from configs import (
  biformer_digits,
  biformer_imagenet,
  crossformer_digits,
  crossformer_imagenet,
  crossvit_digits,
  crossvit_imagenet,
  swiftformer_digits,
  swiftformer_imagenet,
)
from crossattn_jax import models
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import optimizers, schedules

FILES = sorted(
  path.stem
  for path in (pathlib.Path(__file__).parents[2] / 'configs').glob('*.py')
  if path.stem not in ('__init__', 'recipes')
)


@pytest.mark.parametrize('name', FILES)
def test_experiment_is_valid_and_says_its_command(name):
  module = importlib.import_module(f'configs.{name}')
  config_lib.validate(module.get_config())
  assert f'python main.py --config=configs/{name}.py' in module.__doc__


@pytest.mark.parametrize('model', models.list_models('crossvit_*_*'))
def test_every_variant_has_an_imagenet_experiment(model):
  config = crossvit_imagenet.get_config(model)
  config_lib.validate(config)
  built = models.create_model(**config.model)
  assert tuple(config.dataset.image_size) == built.image_size
  assert built.drop_path_rate == 0.1


@pytest.mark.parametrize('model', [*models.list_models('biformer_*'), 'maxvit_stl'])
def test_every_biformer_has_an_imagenet_experiment(model):
  config = biformer_imagenet.get_config(model)
  config_lib.validate(config)
  assert models.create_model(**config.model).drop_path_rate >= 0.1
  assert tuple(config.dataset.image_size) == (224, 224)


@pytest.mark.parametrize('model', models.list_models('crossformer_*'))
def test_every_crossformer_has_an_imagenet_experiment(model):
  config = crossformer_imagenet.get_config(model)
  config_lib.validate(config)
  assert models.create_model(**config.model).drop_path_rate >= 0.1
  assert tuple(config.dataset.image_size) == (224, 224)


def test_crossformer_schedule_is_the_recorded_one_an_update_late():
  config = crossformer_imagenet.get_config()
  recorded = np.load(
    pathlib.Path(__file__).parents[1] / 'reference' / 'crossformer' / 'lr_schedules.npz'
  )
  steps = recorded['out/cosine/steps'].astype(int)
  with jax.enable_x64(True):
    schedule = schedules.create_schedule(
      config.schedule,
      base_lr=schedules.scaled_learning_rate(config.schedule, config.batch_size),
      total_steps=300 * 40,
      steps_per_epoch=40,
    )
    rates = [float(schedule(step + 1)) for step in steps]
    assert float(schedule(0)) == rates[0]
  np.testing.assert_allclose(rates, recorded['out/cosine/lr'], rtol=1e-9)


def test_biformer_schedule_is_the_official_one():
  """Rates by epoch as the specification of the recipe lists them."""
  config = biformer_imagenet.get_config()
  with jax.enable_x64(True):
    schedule = schedules.create_schedule(
      config.schedule,
      base_lr=schedules.scaled_learning_rate(config.schedule, 1024),
      total_steps=300 * 1251,
      steps_per_epoch=1251,
    )
    rates = {e: float(schedule(e * 1251 + 1250)) for e in (0, 1, 2, 3, 4, 5, 6, 100, 151, 299)}
  expected = {0: 1e-6, 1: 1e-6, 2: 2.008e-4, 3: 4.006e-4, 4: 6.004e-4, 5: 8.002e-4}
  expected |= {6: 9.9932e-4, 100: 7.5698e-4, 151: 5.05e-4, 299: 1.0109e-5}
  assert rates == pytest.approx(expected, rel=1e-4)


def test_imagenet_schedule_is_the_recorded_one():
  config = crossvit_imagenet.get_config()
  with np.load(
    pathlib.Path(__file__).parents[1] / 'reference' / 'crossvit' / 'lr_schedule.npz'
  ) as recorded:
    expected = recorded['out/paper']
  with jax.enable_x64(True):
    schedule = schedules.create_schedule(
      config.schedule,
      base_lr=schedules.scaled_learning_rate(config.schedule, 4096),
      total_steps=300 * 312,
      steps_per_epoch=312,
    )
    epochs = np.array([float(schedule(epoch * 312 + 17)) for epoch in range(300)])
  np.testing.assert_allclose(epochs, expected, rtol=1e-9)


@pytest.mark.parametrize(
  ('model', 'rand_augment', 'mixing'),
  [
    ('swiftformer_xs', False, False),
    ('swiftformer_s', True, False),
    ('swiftformer_l1', True, True),
    ('swiftformer_l3', True, True),
  ],
)
def test_every_swiftformer_has_an_imagenet_experiment(model, rand_augment, mixing):
  """Augmentation grows with the variant; a teacher as wide in classes teaches all of them."""
  config = swiftformer_imagenet.get_config(model)
  config_lib.validate(config)
  assert bool(config.dataset.augmentation.rand_augment.num_ops) == rand_augment
  assert bool(config.task.mixup_alpha and config.task.cutmix_alpha) == mixing
  teacher = models.create_model(**config.task.distillation.teacher)
  student = models.create_model(**config.model)
  assert student.distillation
  assert teacher.num_classes == student.num_classes == 1000


def test_swiftformer_decays_and_clips_layer_scales_as_the_original_does():
  config = swiftformer_imagenet.get_config('swiftformer_xs')
  model = models.create_model('swiftformer_xs')
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  settings = optimizers.parameter_settings(config.optimizer, params)
  kept = {path.rpartition('/')[2] for path, each in settings.items() if not each.decayed}
  decayed = {path.rpartition('/')[2] for path, each in settings.items() if each.decayed}
  factors = {'layer_scale', 'layer_scale1', 'layer_scale2', 'query_weights'}
  assert kept == {'bias', 'scale'}
  assert decayed == {'kernel', *factors}
  optimizers.create_optimizer(config.optimizer, lambda step: 1e-3, params)


def test_swiftformer_schedule_is_the_recorded_one():
  config = swiftformer_imagenet.get_config()
  with np.load(
    pathlib.Path(__file__).parents[1] / 'reference' / 'swiftformer' / 'lr_schedule.npz'
  ) as recorded:
    expected = recorded['out/code']
  with jax.enable_x64(True):
    schedule = schedules.create_schedule(
      config.schedule,
      base_lr=schedules.scaled_learning_rate(config.schedule, config.batch_size),
      total_steps=300 * 625,
      steps_per_epoch=625,
    )
    epochs = np.array([float(schedule(epoch * 625 + 17)) for epoch in range(300)])
  np.testing.assert_allclose(epochs, expected, rtol=1e-9)


@pytest.mark.parametrize(
  'experiment', [biformer_digits, crossformer_digits, crossvit_digits, swiftformer_digits]
)
def test_digits_needs_no_network_and_little_time(experiment):
  config = experiment.get_config()
  assert config.dataset.name == 'digits'
  assert config.num_epochs * 1442 / config.batch_size < 2000
