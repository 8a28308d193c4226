"""The list of all models is the one that its script writes, and lacks none."""

import importlib.util
import json
import pathlib

import pytest

import crossattn_jax
from crossattn_jax import models
from crossattn_jax.conversion import published

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'models.md').read_text()


@pytest.fixture(scope='module')
def zoo():
  spec = importlib.util.spec_from_file_location('zoo', ROOT / 'docs' / 'zoo.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_page_is_what_the_script_writes(zoo):
  assert zoo.page() == PAGE, 'run `python docs/zoo.py`'


def test_every_model_is_on_the_page_by_one_of_its_names():
  # Other tests register models of their own, 'test_*'.
  names = [name for name in models.list_models() if not name.startswith('test_')]
  shown = [models.create_model(name) for name in names if f'| `{name}` |' in PAGE]
  assert not [name for name in names if models.create_model(name) not in shown]


def test_results_are_those_of_the_documents(zoo):
  configs = ''.join(path.read_text() for path in (ROOT / 'configs').glob('*.py'))
  for system in zoo.SYSTEMS:
    page = ROOT / 'docs' / system.page
    text = configs + (page.read_text() if system.page else '')
    results = ' / '.join(system.results.values()).split(' / ')
    assert not [result for result in results if result not in text], system.title
    names = set(zoo.names_of(system))
    assert names >= set(system.results)
    if system.config:
      assert (ROOT / system.config.partition(':')[0]).is_file()


def test_parameters_are_those_of_the_models(zoo):
  trees = json.loads((ROOT / 'tests' / 'models' / 'parameter_trees.json').read_text())
  for name, (parameters, *_) in zoo.measured().items():
    assert parameters == trees.get(name, [parameters])[0], name


def test_multiply_adds_are_near_the_papers(zoo):
  for name, paper in (
    ('crossvit_tiny_240', 1.6),
    ('swiftformer_l1', 1.60),
    ('crossformer_small', 4.9),
    ('biformer_small', 4.5),
    ('regnety_160', 15.9),
    ('icafusion_l', 96.1),
    ('sketch_localizer_tiny', 123.3),
  ):
    assert zoo.measured()[name][1] == pytest.approx(paper, rel=0.08)


def test_models_with_weights_are_those_that_download():
  names = crossattn_jax.list_models('*former_[sx]*', weights=True)
  assert names == ['swiftformer_s', 'swiftformer_xs']
  assert 'by hand' in published.where('biformer_small')
  assert published.where('swiftformer_s').keys() == {'timm', 'transformers', 'by hand'}
  assert not published.where('mmvit_base')
