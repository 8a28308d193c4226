"""Scripts beside exported models: what they say where an input is wrong."""

import importlib
import pathlib
import runpy

from PIL import Image
import pytest

from crossattn_jax import tasks
from crossattn_jax.tasks import loading

STEPS = {'mode': 'RGB', 'decoding': {}}


@pytest.mark.parametrize(
  'task',
  [
    'classification',
    'detection',
    'image_fusion',
    'paired_detection',
    'segmentation',
    'sketch_localization',
  ],
)
def test_a_broken_image_is_one_sentence(task, tmp_path, monkeypatch):
  serving = importlib.import_module(f'crossattn_jax.tasks.{task}.serving')
  for module in (loading, *serving.Serving.modules):
    monkeypatch.syspath_prepend(pathlib.Path(module.__file__).parent)
  script = runpy.run_path(str(pathlib.Path(serving.__file__).with_name('serving_script.py')))
  read = script.get('read') or script['preprocess']
  broken, cut = tmp_path / 'broken.png', tmp_path / 'cut.png'
  broken.write_bytes(b'no image')
  Image.effect_noise((32, 32), 9).save(cut)
  cut.write_bytes(cut.read_bytes()[:-400])
  for path, problem in ((broken, 'cannot identify'), (cut, 'trunc'), (tmp_path / 'no', 'No such')):
    with pytest.raises(SystemExit, match=f'^error: cannot read image .*{path.name}.*{problem}'):
      read(path, STEPS)


@pytest.mark.parametrize(
  'script',
  sorted(pathlib.Path(tasks.__file__).parent.glob('*/serving_script.py')),
  ids=lambda script: script.parent.name,
)
def test_without_inputs_a_script_says_what_it_takes(script, monkeypatch):
  modules = [loading]
  if script.with_name('serving.py').exists():
    serving = importlib.import_module(f'crossattn_jax.tasks.{script.parent.name}.serving')
    modules += serving.Serving.modules
  for module in modules:
    monkeypatch.syspath_prepend(pathlib.Path(module.__file__).parent)
  monkeypatch.setattr('sys.argv', ['load_and_run.py'])
  with pytest.raises(SystemExit, match=r'python load_and_run\.py \w+'):
    runpy.run_path(str(script), run_name='__main__')
