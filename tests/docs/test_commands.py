"""The commands in README, documents and docstrings name what exists."""

import importlib.util
import pathlib
import re
import shlex

import pytest

from crossattn_jax.parity import __main__ as parity
from crossattn_jax.training import config as config_lib

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = [
  ROOT / 'README.md',
  ROOT / 'main.py',
  *sorted((ROOT / 'docs').glob('*.md')),
  *sorted((ROOT / 'configs').glob('*.py')),
]


def commands(program):
  """All command lines of a program: (file, arguments)."""
  found = []
  for path in SOURCES:
    text = path.read_text().replace('\\\n', ' ')
    for rest in re.findall(rf'python {re.escape(program)}\b([^\n`"]*)', text):
      arguments = shlex.split(rest.split('&&')[0], comments=True)
      found.append(pytest.param(arguments, id=f'{path.name}: {" ".join(arguments)[:60]}'))
  return found


def experiment(file):
  """The config that `--config=FILE` or `FILE:ARGUMENT` names."""
  path, _, argument = file.partition(':')
  spec = importlib.util.spec_from_file_location('experiment', ROOT / path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(argument) if argument else module.get_config()


@pytest.mark.parametrize('arguments', commands('main.py'))
def test_flags_and_config_keys_exist(arguments):
  flags = {'config', *re.findall(r"DEFINE_\w+\(\s*'(\w+)'", (ROOT / 'main.py').read_text())}
  given = dict(
    argument.removeprefix('--').partition('=')[::2]
    for argument in arguments
    if argument.startswith('--')
  )
  keys = [name.removeprefix('config.') for name in given if name.startswith('config.')]
  assert set(given) - {f'config.{key}' for key in keys} <= flags
  file = given.get('config', '...')
  if file != '...':
    assert set(keys) <= set(config_lib.flat_keys(experiment(file)))


@pytest.mark.parametrize('arguments', commands('-m crossattn_jax.parity'))
def test_parity_commands_parse(arguments):
  if arguments and arguments != ['COMMAND', '--help']:
    parity._parser().parse_args(arguments)


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: path.name)
def test_modules_that_are_run_exist(path):
  for name in re.findall(r'python -m (benchmarks\.\w+)', path.read_text()):
    assert (ROOT / name.replace('.', '/')).with_suffix('.py').exists(), name
