"""The notebooks run from top to bottom without a network, and are committed with their results."""

import importlib.util
import pathlib
import re

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[2]
COLABS = ROOT / 'colabs'
spec = importlib.util.spec_from_file_location('address', COLABS / 'address.py')
address = importlib.util.module_from_spec(spec)
spec.loader.exec_module(address)


def execute(name, folder, environment, monkeypatch, parameters=''):
  """Runs a notebook in a kernel of its own, in an empty folder; an error in a cell is raised.

  `parameters` takes the place of the cell that is tagged so.
  """
  # The kernel inherits the environment. Nothing listens at the proxy's address: a download fails.
  nowhere = 'http://127.0.0.1:9'
  proxies = {'http_proxy': nowhere, 'https_proxy': nowhere, 'no_proxy': ''}
  for key, value in (environment | proxies | {'HF_HUB_OFFLINE': '1'}).items():
    monkeypatch.setenv(key, value)
  notebook = nbformat.read(COLABS / name, as_version=4)
  for cell in notebook.cells:
    if 'parameters' in cell.metadata.get('tags', []):
      cell.source = parameters
  client = nbclient.NotebookClient(
    notebook, timeout=3600, kernel_name='python3', resources={'metadata': {'path': str(folder)}}
  )
  client.execute()
  return notebook


def printed(notebook):
  """All text that the cells of a notebook show."""
  texts = []
  for cell in notebook.cells:
    for output in cell.get('outputs', []):
      texts.append(output.get('text') or output.get('data', {}).get('text/plain', ''))
  return '\n'.join(texts)


def pictures(notebook):
  """How many pictures the cells of a notebook show."""
  outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
  kinds = {'image/png', 'image/jpeg'}
  return sum(not kinds.isdisjoint(output.get('data', {})) for output in outputs)


@pytest.mark.parametrize('path', sorted(COLABS.glob('*.ipynb')), ids=lambda path: path.stem)
def test_a_fork_sets_the_address_everywhere(path, tmp_path):
  copy = tmp_path / path.name
  copy.write_text(path.read_text())
  address.set_address(copy, 'https://github.com/ME/fork')
  assert "REPOSITORY = 'https://github.com/ME/fork'" in copy.read_text()
  assert f'/github/ME/fork/blob/main/colabs/{path.name})' in copy.read_text()
  (repository,) = set(re.findall(r"REPOSITORY = '(.*?)'", path.read_text()))
  address.set_address(copy, repository)
  assert copy.read_text() == path.read_text(), 'run `python colabs/address.py ADDRESS`'


@pytest.mark.extended
def test_quickstart(main_environment, datasets_dir, tmp_path, monkeypatch):
  environment = main_environment | {'TFDS_DATA_DIR': datasets_dir}
  parameters = 'EPOCHS = 1\nENCODERS = ((1, 1, 0),)'
  notebook = execute('quickstart.ipynb', tmp_path, environment, monkeypatch, parameters)
  assert pictures(notebook) == 3
  assert 'finished 22 steps' in printed(notebook)
  assert 'load_and_run.py' in printed(notebook)


@pytest.mark.slow
def test_attention_variants(main_environment, datasets_dir, tmp_path, monkeypatch):
  environment = main_environment | {'TFDS_DATA_DIR': datasets_dir}
  parameters = "EPOCHS = 1\nATTENTIONS = ['efficient_additive', 'pooled']"
  notebook = execute('attention_variants.ipynb', tmp_path, environment, monkeypatch, parameters)
  text = printed(notebook)
  assert pictures(notebook) == 2
  assert 'long_short_distance' in text
  assert text.count(' MFLOP ') == 2


@pytest.mark.slow
def test_systems(main_environment, datasets_dir, tmp_path, monkeypatch):
  environment = main_environment | {'TFDS_DATA_DIR': datasets_dir}
  notebook = execute('systems.ipynb', tmp_path, environment, monkeypatch, 'SHARE = 0.01')
  text = printed(notebook)
  assert pictures(notebook) == 8
  assert 'mean_iou' in text
  assert 'rsum' in text


@pytest.mark.slow
def test_detection(main_environment, tmp_path, monkeypatch):
  notebook = execute('detection.ipynb', tmp_path, main_environment, monkeypatch, 'STEPS = 2')
  text = printed(notebook)
  assert pictures(notebook) == 4
  assert '(AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]' in text
  assert "'logits': (1, 4842, 2)" in text


@pytest.mark.slow
def test_pairs(main_environment, datasets_dir, tmp_path, monkeypatch):
  environment = main_environment | {'TFDS_DATA_DIR': datasets_dir}
  parameters = 'EPOCHS = 0.06\nconfig.schedule.warmup_steps = 0'
  notebook = execute('pairs.ipynb', tmp_path, environment, monkeypatch, parameters)
  text = printed(notebook)
  assert pictures(notebook) == 2
  assert 'mAP50' in text
  assert '(1, 40, 40, 64)' in text


@pytest.mark.slow
def test_sketch(main_environment, datasets_dir, tmp_path, monkeypatch):
  environment = main_environment | {'TFDS_DATA_DIR': datasets_dir}
  parameters = 'EPOCHS = 0.01\nconfig.schedule.warmup_steps = 0'
  notebook = execute('sketch.ipynb', tmp_path, environment, monkeypatch, parameters)
  text = printed(notebook)
  assert pictures(notebook) == 5
  assert 'unseen_box_ap50' in text
  assert 'strokes of QuickDraw' in text


@pytest.mark.slow
def test_points(main_environment, datasets_dir, tmp_path, monkeypatch):
  environment = main_environment | {'TFDS_DATA_DIR': datasets_dir}
  parameters = (
    'EPOCHS = (0.05, 0.05)\ntags.schedule.warmup_steps = points.schedule.warmup_steps = 0'
  )
  notebook = execute('points.ipynb', tmp_path, environment, monkeypatch, parameters)
  text = printed(notebook)
  assert pictures(notebook) == 5
  assert 'of the points have a label' in text
  assert 'mean_iou' in text


@pytest.mark.torch
def test_compare_with_pytorch(main_environment, tmp_path, monkeypatch):
  notebook = execute('compare_with_pytorch.ipynb', tmp_path, main_environment, monkeypatch)
  text = printed(notebook)
  assert pictures(notebook) == 2
  assert 'block_64 float64: FAILED' in text
  assert 'block_64 float64: passed' in text
  assert 'block_64 float32: passed' in text
  assert text.count('outside the bound: None') == 3
  assert 'patch_embed.1' in text
  assert 'came back bit for bit' in text


@pytest.mark.parametrize('path', sorted(COLABS.glob('*.ipynb')), ids=lambda path: path.name)
def test_notebooks_are_committed_with_their_results(path):
  assert path.stat().st_size < 1e6
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  # Run in order, once, from the first cell to the last, without an error.
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  assert not [o for cell in code for o in cell.outputs if o.output_type == 'error']
  assert pictures(notebook) >= 2
