"""Every pattern of every experiment, and each alternative in it, is of parameters of its model."""

import importlib
import pathlib

import jax
import pytest

from crossattn_jax import models, tasks
from crossattn_jax.training import optimizers

# What the files with patterns take besides their default argument.
ARGUMENTS = {
  'mmca_flickr30k': ('saem_bert_base',),
  'segmentation_ade20k': models.list_models('[bc]*former_*+upernet'),
  'swiftformer_digits': ('taught',),
  'swiftformer_imagenet': models.list_models('swiftformer_*'),
}
DEFAULTS = [
  (path.stem,)
  for path in sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))
  if path.stem not in ('__init__', 'recipes')
]
QUICK = ('segmentation_ade20k', 'crossformer_tiny+upernet')


@pytest.mark.parametrize(
  'experiment',
  DEFAULTS
  + [
    pytest.param((name, argument), marks=[] if (name, argument) == QUICK else pytest.mark.extended)
    for name, arguments in ARGUMENTS.items()
    for argument in arguments
  ],
  ids=':'.join,
)
def test_every_pattern_is_of_parameters(experiment):
  name, *argument = experiment
  config = importlib.import_module(f'configs.{name}').get_config(*argument)
  given = [key for key, value in config.optimizer.items() if value and isinstance(value, tuple)]
  # Whose model need not be built.
  if not given and not config.sharding.rules:
    return
  assert not config.sharding.rules
  task = tasks.create_task(config)
  params = jax.eval_shape(task.init, jax.random.key(0))['params']
  optimizers.parameter_settings(config.optimizer, params)
