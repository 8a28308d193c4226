"""The page of all keys is what its script writes, and lacks none that a config has."""

import importlib.util
import pathlib

import pytest

from crossattn_jax.training import config as config_lib

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = [path for path in sorted((ROOT / 'configs').glob('*.py')) if path.stem != '__init__']


@pytest.fixture(scope='module')
def reference():
  spec = importlib.util.spec_from_file_location('reference', ROOT / 'docs' / 'config_reference.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def leaves(config):
  entries = config_lib.flat(config)
  return {key for key, value in entries.items() if not hasattr(value, 'items')}


def test_the_page_is_what_the_script_writes(reference):
  page = (ROOT / 'docs' / 'config.md').read_text()
  assert reference.page() == page, 'run `python docs/config_reference.py`'


def test_every_key_of_every_task_has_a_comment_in_the_source(reference):
  for task in reference.TASKS:
    entries = reference.keys_of(task)
    assert entries.keys() == leaves(config_lib.default_config(task))
    assert not [key for key, (_, meaning) in entries.items() if not meaning and key != 'task.name']


def test_keys_have_their_types_and_defaults(reference):
  entries = reference.keys_of('classification')
  assert entries['batch_size'][0] == 'batch_size: int = 128'
  assert entries['num_epochs'][0] == 'num_epochs: float | None = None'
  assert entries['dataset.eval_split'][0] == "dataset.eval_split: str | None = 'validation'"
  assert entries['task.mixup_alpha'][1].startswith('Parameter of the Beta distribution')
  # Keys of one line, and of one entry of a docstring, have their meaning in common.
  assert entries['mesh.data'][1] == entries['mesh.fsdp'][1]
  assert entries['optimizer.beta1'][1] == entries['optimizer.beta2'][1] != ''


@pytest.mark.extended
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_key_of_a_committed_config_is_documented(path, reference):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    return
  config = module.get_config()
  known = dict(reference.keys_of(config.task.name))
  for name in {config.model.name} | {config.model.name.partition('+')[0]}:
    known |= {f'model.{field}': entry for field, entry in reference.fields_of(name).items()}
  known |= {f'model.{field}': (field, text) for field, text in reference.OF_EVERY_MODEL.items()}
  # Those of a teacher are a model's.
  keys = {key for key in leaves(config) if not key.startswith('task.distillation.teacher.')}
  assert not [key for key in keys - {'task.name'} if key not in known or not known[key][1]]
