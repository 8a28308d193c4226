"""The examples in docstrings give what they show."""

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
  names = {'jax': jax, 'jnp': jnp, 'np': np}
  flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
  result = doctest.testmod(importlib.import_module(name), extraglobs=names, optionflags=flags)
  assert result.attempted
  assert not result.failed


def save_model(path):
  """Writes the file that examples open."""
  from crossattn_jax.models import variables_io

  model = crossattn_jax.create_model('swiftformer_xs')
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 224, 224, 3)))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
  variables_io.save_variables(path, zeros, 'swiftformer_xs')
