"""The examples in docstrings give what they show."""

import ast
import contextlib
import doctest
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossattn_jax

ROOT = pathlib.Path(crossattn_jax.__file__).parent
MODULES = [
  '.'.join(path.relative_to(ROOT.parent).with_suffix('').parts).removesuffix('.__init__')
  for path in sorted(ROOT.rglob('*.py'))
  if '>>> ' in path.read_text()
]


@pytest.mark.extended
@pytest.mark.parametrize('name', MODULES)
def test_examples_give_what_they_show(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  if name == 'crossattn_jax.conversion.pretrained':
    save_model('model.safetensors')
  if name == 'crossattn_jax.training.loop':
    save_run(tmp_path / 'run')
  names = {'jax': jax, 'jnp': jnp, 'np': np}
  flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
  result = doctest.testmod(importlib.import_module(name), extraglobs=names, optionflags=flags)
  assert result.attempted
  assert not result.failed


def save_run(workdir):
  """Writes the run that examples open, as after its first step."""
  from configs import crossvit_digits
  from crossattn_jax.training import checkpoints, config, experiment

  run = crossvit_digits.get_config()
  run.model.widths, run.model.depths = (16, 32), ((1, 1, 0),)
  run.dataset.class_names = tuple(map(str, range(10)))
  workdir.mkdir()
  config.save(run, workdir / 'config.json')
  with contextlib.closing(checkpoints.Checkpointer(workdir / 'checkpoints')) as checkpointer:
    checkpointer.save(1, experiment.setup(run, steps_per_epoch=10).init_state(), run)


def save_model(path):
  """Writes the file that examples open."""
  from crossattn_jax.models import variables_io

  model = crossattn_jax.create_model('swiftformer_xs')
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 224, 224, 3)))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
  variables_io.save_variables(path, zeros, 'swiftformer_xs')


@pytest.mark.extended
def test_the_page_on_predicting_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  save_run(tmp_path / 'run')
  page = (ROOT.parent / 'docs' / 'predicting.md').read_text()
  exec(page.partition('```python\n')[2].partition('```')[0], {})
  labels = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
  assert len(labels) == 2
  assert set(labels) <= set(map(str, range(10)))
