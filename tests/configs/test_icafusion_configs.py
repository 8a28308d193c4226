"""ICAFusion's recipe is that of its authors' script."""

import pathlib

import jax
import numpy as np
import pytest

from configs import icafusion_flir, icafusion_kaist, icafusion_llvip, icafusion_vedai
from crossattn_jax import tasks
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import optimizers

EXPERIMENTS = {icafusion_kaist: 1, icafusion_flir: 3, icafusion_llvip: 1, icafusion_vedai: 9}
RECORDED = pathlib.Path(__file__).parents[1] / 'reference' / 'icafusion' / 'train_schedule.npz'


@pytest.mark.parametrize(
  'argument',
  [
    'icafusion_l',
    'icafusion_n',
    'icafusion_resnet50',
    'icafusion_vgg16,nin',
    'icafusion_s,thermal',
  ],
)
@pytest.mark.parametrize('experiment', EXPERIMENTS, ids=lambda x: x.__name__)
def test_every_model_and_fusion_is_a_valid_experiment(experiment, argument):
  config = experiment.get_config(argument)
  config_lib.validate(config)
  config.model.num_classes = len(config.dataset.class_names)
  task = tasks.create_task(config)
  assert len(task.class_names) == EXPERIMENTS[experiment]
  assert task.batch_spec(8)['thermal'].shape == (8, 640, 640, 3)
  assert config.dataset.augmentation.mosaic == (experiment is not icafusion_vedai)


def test_the_rates_are_the_recorded_ones():
  config = icafusion_kaist.get_config()
  steps, _, _, weights, biases, momentum, _ = np.load(RECORDED)['out/table'].T
  [*_, (_, bias_start)] = config.optimizer.warmup_starts
  with jax.enable_x64(True):
    schedule = experiment_lib.create_schedule(config, steps_per_epoch=516)
    np.testing.assert_allclose(schedule(steps), weights, rtol=1e-12)
    np.testing.assert_allclose(schedule(steps, bias_start), biases, rtol=1e-12)
    rising = optimizers.momentum_schedule(config.optimizer, schedule.warmup_steps)
    np.testing.assert_allclose(rising(steps), momentum, rtol=1e-12)


def settings(argument):
  config = icafusion_flir.get_config(argument)
  config.model.num_classes = 3
  task = tasks.create_task(config)
  params = jax.eval_shape(task.init, jax.random.key(0))['params']
  return optimizers.parameter_settings(config.optimizer, params, config.freeze)


def test_parameters_are_in_the_groups_of_the_original():
  found = settings('icafusion_n')
  frozen = {path for path, each in found.items() if not each.multiplier}
  # A position embedding and two factors of shrinking for each modality and level.
  assert len(frozen) == 18
  assert all('/positions_' in path or '/shrinking_' in path for path in frozen)
  for path, each in found.items():
    name = path.rpartition('/')[2]
    factor = '_sum_' in path
    in_block = path.startswith('fusion_') and '/block_' in path
    if path in frozen:
      continue
    assert each.multiplier == 1
    assert each.warmup_start == (0.1 if name == 'bias' or factor else None), path
    assert each.decayed == (name == 'kernel' or (name == 'scale' and in_block)), path


@pytest.mark.parametrize('argument', ['icafusion_n,nin', 'icafusion_n,rgb', 'icafusion_vgg16,add'])
def test_other_fusions_and_single_streams_have_nothing_frozen(argument):
  found = settings(argument)
  assert all(each.multiplier == 1 for each in found.values())
  decayed = {path.rpartition('/')[2] for path, each in found.items() if each.decayed}
  assert decayed == {'kernel'}
