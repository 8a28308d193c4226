"""MMViT's experiments are the recipes that docs/mmvit.md names."""

import math

import jax
import pytest

from configs import mmvit_audioset, mmvit_digits, mmvit_imagenet, mmvit_tones
from crossattn_jax import models
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import schedules


def _rates(config, batch_size, steps_per_epoch, epochs):
  with jax.enable_x64(True):
    schedule = schedules.create_schedule(
      config.schedule,
      base_lr=schedules.scaled_learning_rate(config.schedule, batch_size),
      total_steps=round(config.num_epochs * steps_per_epoch),
      steps_per_epoch=steps_per_epoch,
    )
    return {epoch: float(schedule(round(epoch * steps_per_epoch))) for epoch in epochs}


@pytest.mark.parametrize('model', ['mmvit_base', 'mmvit_small', 'mmvit_tiny'])
def test_every_image_variant_has_an_imagenet_experiment(model):
  config = mmvit_imagenet.get_config(model)
  config_lib.validate(config)
  assert models.create_model(**config.model).drop_path_rate == 0.1


def test_the_image_schedule_is_a_long_warm_up_and_a_cosine_after_it():
  config = mmvit_imagenet.get_config()
  rates = _rates(config, 1024, 1251, (0, 35, 70, 150, 299.5))
  base, end = 2.5e-4 * 1024 / 256, 1e-6
  expected = {0: 1e-8, 35: 1e-8 + (base - 1e-8) / 2}
  for epoch in (70, 150, 299.5):
    shape = (1 + math.cos(math.pi * (epoch - 70) / (300 - 70))) / 2
    expected[epoch] = end + (base - end) * shape
  # Half an epoch is rounded to a step.
  assert rates == pytest.approx(expected, rel=1e-3)


def test_the_audio_schedules_halve_the_rate():
  rates = _rates(mmvit_audioset.get_config('full'), 12, 10_000, (1.5, 2.5, 3.5, 4.5))
  assert list(rates.values()) == pytest.approx([1e-5, 5e-6, 2.5e-6, 1.25e-6])
  rates = _rates(mmvit_audioset.get_config('20k'), 12, 1_000, (9.5, 10.5, 15.5, 20.5))
  assert list(rates.values()) == pytest.approx([5e-5, 2.5e-5, 1.25e-5, 6.25e-6])


@pytest.mark.parametrize('experiment', [mmvit_digits, mmvit_tones])
def test_quick_experiments_need_no_network_and_little_time(experiment):
  config = experiment.get_config()
  config_lib.validate(config)
  assert config.dataset.name in ('digits', 'tones')
  assert config.num_epochs * 2048 / config.batch_size < 2000
