"""docs/equations.md names functions that exist and cite the place in the paper that it gives."""

import importlib
import inspect
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'equations.md').read_text()
# | what | in the paper | `module.function` |
ROWS = re.findall(r'^\|[^|]+\|([^|]+)\| `([\w.]+)` \|$', PAGE, re.MULTILINE)


def find(path):
  module, _, name = path.rpartition('.')
  module = importlib.import_module(f'crossattn_jax.{module}')
  return module, getattr(module, name)


@pytest.mark.parametrize(('place', 'path'), ROWS, ids=str)
def test_a_function_exists_and_cites_its_place(place, path):
  module, function = find(path)
  text = f'{inspect.getdoc(function)} {module.__doc__}'
  assert place.strip() in re.sub(r'\s+', ' ', text)


def test_every_row_is_read():
  rows = [line for line in PAGE.splitlines() if line.startswith('|') and '`' in line]
  assert len(rows) == len(ROWS) > 0


def test_every_mechanism_is_named():
  named = {path.split('.')[1] for _, path in ROWS if path.startswith('attention.')}
  files = {file.stem for file in (ROOT / 'crossattn_jax' / 'attention').glob('[a-z]*.py')}
  # Parts of others' mechanisms, and the table that knows mechanisms by name.
  others = {
    'block_grid_attention',
    'global_attention',
    'map_attention',
    'random_features',
    'self_attention',
  }
  assert files == named | others
