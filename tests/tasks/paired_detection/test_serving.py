"""An exported detector of pairs finds what the model finds, without this library."""

import json
import runpy
import sys

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest

from crossattn_jax import tasks
from crossattn_jax.models import variables_io
from crossattn_jax.training import export


def random_variables(task):
  """Of a network that finds many things; nothing is compiled."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    spread = 0.1 if len(leaf.shape) < 2 else 1.5 / np.sqrt(np.prod(leaf.shape[:-1]))
    values = spread * rng.standard_normal(leaf.shape)
    values += 'scale' in str(path[-1])
    return (np.abs(values) + 0.5 if 'var' in str(path[-1]) else values).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(task.init, jax.random.key(0)))


@pytest.mark.extended
def test_the_script_writes_a_picture_and_what_predictions_have(
  small_config, tmp_path, monkeypatch, capsys
):
  config = small_config()
  config.task.evaluation.max_boxes = 5
  task = tasks.create_task(config)
  variables = random_variables(task)
  config.num_steps = 1
  saved = {name: x for name, x in config.model.items() if x is not None and name != 'name'}
  weights = tmp_path / 'w.safetensors'
  variables_io.save_variables(weights, variables, config.model.name, saved)
  config.weights = str(weights)
  exported = tmp_path / 'exported'
  export.export_model(config, None, epath.Path(exported), platforms=['cpu'])
  rng = np.random.default_rng(0)
  paths = []
  for kind, size in (('rgb', (90, 51, 3)), ('ir', (90, 51))):
    paths.append(tmp_path / kind / '7.png')
    paths[-1].parent.mkdir()
    Image.fromarray(rng.integers(256, size=size, dtype=np.uint8)).save(paths[-1])
  script = str(exported / 'load_and_run.py')
  monkeypatch.syspath_prepend(exported)  # As python does for a script.
  monkeypatch.setattr(sys, 'argv', [script, *map(str, paths)])
  runpy.run_path(script, run_name='__main__')

  predictor = task.Predictor(task, variables)
  predictor.write_predictions(epath.Path(f'{paths[0]},{paths[1]}'), epath.Path(tmp_path / 'out'))
  expected = json.loads((tmp_path / 'out' / 'detections.json').read_text())
  found = json.loads((tmp_path / 'rgb' / '7_objects.json').read_text())
  assert len(found) == len(expected) == 5
  for one, other in zip(found, expected, strict=True):
    assert (one['image_id'], one['category_id']) == (7, other['category_id'])
    np.testing.assert_allclose(one['bbox'], other['bbox'], atol=0.01)
    assert one['score'] == pytest.approx(other['score'], abs=1e-5)
  width, height = Image.open(tmp_path / 'rgb' / '7_objects.png').size
  assert (width % 2, height) == (0, 847)
  Image.new('RGB', (32, 32)).save(paths[1])
  with pytest.raises(SystemExit, match='differ in size'):
    runpy.run_path(script, run_name='__main__')
