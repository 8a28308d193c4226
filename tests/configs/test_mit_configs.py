"""The experiments of MIT are the recipe that its authors' code states."""

import pathlib

import jax
import numpy as np
import pytest

from configs import minkunet_s3dis, minkunet_scannet, mit_s3dis, mit_scannet
from crossattn_jax import models
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment, optimizers

RECORDED = pathlib.Path(__file__).parents[1] / 'reference' / 'mit' / 'train_lr_schedules.npz'


@pytest.mark.parametrize('model', models.list_models('mit_*'))
@pytest.mark.parametrize('module', [mit_scannet, mit_s3dis])
def test_every_variant_has_an_experiment_of_its_photographs(module, model):
  config = module.get_config(model)
  config_lib.validate(config)
  built = models.create_model(**config.model)
  if model != 'mit_points':
    assert built.num_views == config.dataset.num_views
    assert tuple(built.image_size) == tuple(config.dataset.image_size)
  if model != 'mit_images':
    assert len(built.points_widths) // 2 + 1 == config.dataset.num_levels


@pytest.mark.parametrize('module', [minkunet_scannet, minkunet_s3dis])
@pytest.mark.parametrize('model', ['minkunet14a', 'minkunet18a', 'minkunet34c'])
def test_segmentation_is_of_any_minkunet(module, model):
  config = module.get_config(model)
  config_lib.validate(config)
  assert config.dataset.augmentation.elastic == 0.95


@pytest.mark.parametrize(
  ('module', 'output'), [(mit_scannet, 'stage1_lr'), (minkunet_scannet, 'stage2_lr')]
)
def test_rates_are_those_recorded_of_the_authors_loop(module, output):
  config = module.get_config()
  config.num_epochs = 43.0
  with jax.enable_x64(True):
    schedule = experiment.create_schedule(config, steps_per_epoch=5)
    np.testing.assert_allclose(
      schedule(np.arange(215)), np.load(RECORDED)[f'out/{output}'], rtol=1e-9
    )


@pytest.mark.parametrize('module', [mit_scannet, minkunet_scannet])
def test_everything_is_decayed(module):
  params = {'norm': {'scale': np.ones(3), 'bias': np.ones(3)}, 'cls_token': np.ones((1, 20, 96))}
  settings = optimizers.parameter_settings(module.get_config().optimizer, params)
  assert all(each.decayed for each in settings.values())
