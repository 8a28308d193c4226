"""Weights from a file are evaluated and trained on; those of another model are refused."""

import jax
import numpy as np
import pytest

from configs import finetune
from crossattn_jax import tasks
from crossattn_jax.conversion import opening
from crossattn_jax.models import variables_io
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment as experiment_lib
from crossattn_jax.training import loop, weights


@pytest.fixture
def saved(tiny_config, tmp_path):
  """An experiment, a state of it, and a file of that state's variables."""
  experiment = experiment_lib.setup(tiny_config)
  state = experiment.init_state()
  path = tmp_path / 'ours.safetensors'
  variables_io.save_variables(path, state.variables, 'crossvit_tiny_240')
  return experiment, state, path


def test_a_file_is_loaded_bit_for_bit_onto_the_mesh(saved):
  experiment, state, path = saved
  loaded = weights.load(experiment, str(path))
  jax.tree.map(np.testing.assert_array_equal, loaded, state.variables)
  jax.tree.map(
    lambda leaf, spec: leaf.sharding == spec.sharding or pytest.fail(str(leaf.sharding)),
    loaded,
    experiment.abstract_state.variables,
  )


@pytest.mark.extended
def test_evaluation_of_a_file_needs_no_workdir(saved, tiny_config):
  experiment, state, path = saved
  tiny_config.weights = str(path)
  with jax.set_mesh(experiment.mesh):
    expected = loop.run_evaluation(experiment, state.variables)
  assert loop.evaluate(tiny_config, None) == expected


@pytest.mark.extended
def test_training_starts_from_a_file(saved, tiny_config):
  tiny_config.ema.decay = 0.9
  experiment = experiment_lib.setup(tiny_config)
  _, state, path = saved
  tiny_config.seed = 1
  fresh = experiment_lib.setup(tiny_config).init_state()
  started = weights.start_from(experiment, fresh, str(path))
  jax.tree.map(np.testing.assert_array_equal, started.variables, state.variables)
  jax.tree.map(np.testing.assert_array_equal, started.ema, state.variables)


def test_a_file_of_another_model_is_refused_by_name(saved, tiny_config):
  *_, path = saved
  tiny_config.model.widths = (16, 48)
  experiment = experiment_lib.setup(tiny_config)
  with pytest.raises(
    config_lib.ConfigError,
    match=r'does not fit model .*\n.*params/.*32.* in the file, .*48.* in the model',
  ):
    weights.load(experiment, str(path))


def test_published_weights_of_a_thousand_classes_have_the_names_of_imagenet(monkeypatch):
  config = finetune.get_config('swiftformer_xs')
  config.weights = 'timm'
  opened = opening.OpenedWeights('swiftformer_xs', {}, {})
  monkeypatch.setattr(weights, '_open_file', lambda *_: opened)
  weights.complete_config(config, classes=True)
  assert config.model.num_classes == len(config.dataset.class_names) == 1000
  assert tasks.create_task(config).class_name(388) == 'giant panda'
