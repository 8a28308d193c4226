"""The recipes of the sketch localizer state the facts of its release and of its repair."""

import jax
import numpy as np
import pytest

from configs import sketch_localizer_quickdraw, sketch_localizer_sketchy
from crossattn_jax import models
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import optimizers

EXPERIMENTS = (sketch_localizer_quickdraw, sketch_localizer_sketchy)
SMALL = {
  'width': 32,
  'depths': (1, 1, 1, 1),
  'num_heads': (1, 1, 2, 2),
  'channels': 32,
  'num_layers': 1,
  'first_level': 1,
  'sketch_depths': (1, 1, 1, 1),
  'sketch_widths': (8, 8, 8, 8),
}


@pytest.mark.parametrize('argument', ['sketch_localizer_tiny', 'sketch_localizer_small,repaired'])
@pytest.mark.parametrize('experiment', EXPERIMENTS, ids=lambda x: x.__name__)
def test_every_model_and_recipe_is_a_valid_experiment(experiment, argument):
  config = experiment.get_config(argument)
  config_lib.validate(config)
  assert config.model.name == argument.partition(',')[0]
  # Thin lines, white on black, are the release's on QuickDraw alone.
  is_release = experiment is sketch_localizer_quickdraw and 'repaired' not in argument
  assert config.dataset.sketches.style == ('release' if is_release else 'repaired')


def test_an_unknown_recipe_names_those_there_are():
  with pytest.raises(ValueError, match="'fixed'; it must be release or nominal or repaired"):
    sketch_localizer_quickdraw.get_config('sketch_localizer_tiny,fixed')


@pytest.mark.parametrize(
  ('recipe', 'rates'),
  [
    # By epoch.
    ('release', {0: 1e-5, 3: 1e-5, 4: 1e-6, 11: 1e-6}),
    ('nominal', {0: 1e-4, 4: 1e-4, 11: 1e-4}),
    ('repaired', {0: 1e-4, 39: 1e-4, 40: 1e-5, 49: 1e-5}),
  ],
)
def test_the_rates_are_those_of_the_code(recipe, rates):
  config = sketch_localizer_quickdraw.get_config(f'sketch_localizer_tiny,{recipe}')
  schedule = experiment_lib.create_schedule(config, steps_per_epoch=10)
  steps = [10 * epoch for epoch in rates]
  np.testing.assert_allclose([schedule(step) for step in steps], [*rates.values()], rtol=1e-5)
  assert config.num_epochs == max(rates) + 1


@pytest.mark.extended
@pytest.mark.parametrize('recipe', ['release', 'repaired'])
def test_parameters_are_in_the_groups_of_the_code(recipe):
  config = sketch_localizer_quickdraw.get_config(f'sketch_localizer_tiny,{recipe}')
  model = models.create_model('sketch_localizer_tiny', **SMALL)
  inputs = (
    jax.ShapeDtypeStruct(shape, np.float32) for shape in [(1, 64, 64, 3), (1, 1, 32, 32, 3)]
  )
  params = jax.eval_shape(model.init, jax.random.key(0), *inputs)['params']
  for path, found in optimizers.parameter_settings(config.optimizer, params).items():
    top, leaf = path.split('/')[0], path.split('/')[-1]
    of_backbone = top == 'backbone'
    vector = leaf in ('bias', 'scale') or path in ('backbone/det_token', 'backbone/det_position')
    assert found.decayed == (not (of_backbone and vector)), path
    slow = of_backbone or 'decoder/point' in path or 'deformable/offsets' in path
    assert found.multiplier == (0.1 if slow and recipe == 'repaired' else 1), path
