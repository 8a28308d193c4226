"""The page of metrics is what its script writes, and lacks none that a run prints."""

import ast
import importlib.util
import pathlib
import re

import pytest

from crossattn_jax import tasks
from crossattn_jax.tasks.sketch_localization import losses as sketch_losses
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import metric_writers

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = sorted((ROOT / 'crossattn_jax' / 'tasks').rglob('*.py'))
# Of functions that only the parity tools call.
UNUSED = {'dice_loss', 'token_focal_loss', 'token_dice_loss'}


@pytest.fixture(scope='module')
def reference():
  path = ROOT / 'docs' / 'metrics_reference.py'
  spec = importlib.util.spec_from_file_location('metrics_reference', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.extended
def test_the_page_is_what_the_script_writes(reference):
  page = (ROOT / 'docs' / 'metrics.md').read_text()
  assert reference.page() == page, 'run `python docs/metrics_reference.py`'


@pytest.mark.parametrize('name', tasks.list_tasks())
def test_every_metric_of_a_task_is_there(reference, name):
  rows, families = list(reference.rows_of(name)), reference.ENTRIES[name].families
  shown = {row[0] for row in rows}
  for metric in reference.task_of(name).metric_modes:
    assert metric in shown or metric.startswith(tuple(families)), metric
  assert all(meaning for _, meaning, _ in rows)
  assert all(extent[-1] in '↑↓' for metric, _, extent in rows if not metric.endswith('...'))


def test_every_metric_of_training_steps_is_there(reference):
  written = {
    node.value
    for path in SOURCES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
  }
  losses = {text for text in written if re.fullmatch(r'[a-z]\w*_loss', text)}
  weights = config_lib.default_config('scene_labels').task.loss_weights
  losses |= {f'{name}_loss' for name in weights}
  wanted = losses - UNUSED | {*sketch_losses.ERRORS}
  assert wanted <= metric_writers.TRAINING_WORDS.keys()
  assert all(meaning and extent for _, meaning, extent in reference.training_rows())
