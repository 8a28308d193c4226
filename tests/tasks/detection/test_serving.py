"""An exported detector finds what the model finds, without this library."""

import json
import runpy
import sys

from etils import epath
import jax
import numpy as np
from PIL import Image
from pycocotools import mask as judge
import pytest

from crossattn_jax import tasks
from crossattn_jax.models import variables_io
from crossattn_jax.training import export


def random_variables(task, scale):
  """Of a network that finds many things; nothing is compiled."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    spread = 0.1 if len(leaf.shape) < 2 else scale / np.sqrt(np.prod(leaf.shape[:-1]))
    values = spread * rng.standard_normal(leaf.shape)
    values += 'scale' in str(path[-1])
    return (np.abs(values) + 0.5 if 'var' in str(path[-1]) else values).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(task.init, jax.random.key(0)))


@pytest.mark.extended
@pytest.mark.parametrize('head', ['retinanet', 'mask_rcnn'])
def test_the_script_writes_a_picture_and_what_predictions_have(
  head, small_config, tmp_path, monkeypatch
):
  config = small_config(head)
  config.task.evaluation.max_boxes = 5
  task = tasks.create_task(config)
  variables = random_variables(task, 0.3 if head == 'mask_rcnn' else 1.5)
  config.num_steps = 1
  saved = {name: x for name, x in config.model.items() if x is not None and name != 'name'}
  weights = tmp_path / 'w.safetensors'
  variables_io.save_variables(weights, variables, config.model.name, saved)
  config.weights = str(weights)
  exported = tmp_path / 'exported'
  export.export_model(config, None, epath.Path(exported), platforms=['cpu'])
  rng = np.random.default_rng(0)
  Image.fromarray(rng.integers(256, size=(90, 50, 3), dtype=np.uint8)).save(tmp_path / '7.png')
  script = str(exported / 'load_and_run.py')
  monkeypatch.syspath_prepend(exported)  # As python does for a script.
  monkeypatch.setattr(sys, 'argv', [script, str(tmp_path / '7.png')])
  runpy.run_path(script, run_name='__main__')

  predictor = task.Predictor(task, variables)
  predictor.write_predictions(epath.Path(tmp_path / '7.png'), epath.Path(tmp_path / 'out'))
  expected = json.loads((tmp_path / 'out' / 'detections.json').read_text())
  found = json.loads((tmp_path / '7_objects.json').read_text())
  assert len(found) == len(expected) > 0
  for one, other in zip(found, expected, strict=True):
    assert (one['image_id'], one['category_id']) == (7, other['category_id'])
    np.testing.assert_allclose(one['bbox'], other['bbox'], atol=0.01)
    if head == 'mask_rcnn':
      mask = judge.decode(judge.frPyObjects(one['segmentation'], 90, 50))
      assert (mask != judge.decode(other['segmentation'])).mean() < 0.01
  assert Image.open(tmp_path / '7_objects.png').size == Image.open(tmp_path / 'out/7.png').size
