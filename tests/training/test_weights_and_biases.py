"""Weights & Biases is told what TensorBoard is; a package that stands in for it listens."""

import sys
import types

from etils import epath
import ml_collections
import numpy as np
from PIL import Image
import pytest

from crossattn_jax import config_errors
from crossattn_jax.training import metric_writers, weights_and_biases

CONFIG = ml_collections.ConfigDict({'seed': 3})


@pytest.fixture
def told(monkeypatch):
  """What the package was told, in order."""
  calls = []

  class Error(Exception):
    pass

  def init(**options):
    if options['project'] == 'refused':
      raise Error('no key')
    calls.append(options)
    return types.SimpleNamespace(
      define_metric=lambda name, step_metric: calls.append((name, step_metric)),
      log=calls.append,
      finish=lambda: calls.append('finished'),
    )

  module = types.ModuleType('wandb')
  module.__spec__ = types.SimpleNamespace()
  module.init, module.Error, module.Image = init, Error, lambda picture: picture.size
  monkeypatch.setitem(sys.modules, 'wandb', module)
  return calls


def test_metrics_and_pictures_go_to_the_workdirs_run_and_a_restart_goes_on_with_it(told, tmp_path):
  folder = epath.Path(tmp_path / 'run')
  folder.mkdir()
  for step in (1, 2):
    writer = metric_writers.MetricWriter(
      folder,
      create_tracker=lambda: weights_and_biases.Tracker('lab/digits', folder, CONFIG),
    )
    writer.write(step, {'train/loss': 0.5})
    writer.close()
  first, *calls = told[:4]
  assert (first['entity'], first['project'], first['name']) == ('lab', 'digits', 'run')
  assert (first['config'], first['resume']) == ({'seed': 3}, 'allow')
  assert calls == [('*', 'step'), {'step': 1, 'train/loss': 0.5}, 'finished']
  assert told[4]['id'] == first['id']
  # Another project has a run of its own.
  weights_and_biases.Tracker('lab/other', folder, CONFIG)
  assert told[-2]['id'] != first['id']


def test_pictures_go_to_both(told, tmp_path):
  folder = epath.Path(tmp_path)
  Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / 'worst.png')
  writer = metric_writers.MetricWriter(
    folder, create_tracker=lambda: weights_and_biases.Tracker('digits', folder, CONFIG)
  )
  writer.write_picture(7, folder / 'worst.png')
  writer.close()
  assert told[2] == {'step': 7, 'pictures/worst': (6, 4)}


def test_what_the_package_refuses_is_an_error_of_the_config(told, tmp_path):
  with pytest.raises(config_errors.ConfigError, match=r"wandb='refused': no key; `wandb login`"):
    weights_and_biases.Tracker('refused', epath.Path(tmp_path), CONFIG)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(config_errors.ConfigError, match=r"pip install 'crossattn_jax\[wandb\]'"):
    weights_and_biases.check('digits')
  weights_and_biases.check(None)
