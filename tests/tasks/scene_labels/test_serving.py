"""An exported network says of scenes what the network says, without this library."""

import json
import runpy

from etils import epath
import jax
import numpy as np
import pytest

from crossattn_jax import tasks
from crossattn_jax.data.scene_points import files, folder, point_files
from crossattn_jax.models import variables_io
from crossattn_jax.tasks import predictor
from crossattn_jax.tasks.scene_labels import predictions
from crossattn_jax.training import export


def _random_variables(task):
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
    values = rng.standard_normal(leaf.shape) / np.sqrt(fan_in) + ('scale' in str(path[-1]))
    return (np.abs(values) + 0.5 if 'var' in str(path[-1]) else values).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(task.init, jax.random.key(0)))


@pytest.mark.slow
def test_the_script_says_what_the_model_says(small_config, scenes, tmp_path, monkeypatch, capsys):
  config = small_config()
  config.num_steps = 1
  config.task.pseudo_labels.threshold = 0.3
  task = tasks.create_task(config)
  variables = _random_variables(task)
  saved = {name: x for name, x in config.model.items() if x is not None and name != 'name'}
  variables_io.save_variables(tmp_path / 'w.safetensors', variables, config.model.name, saved)
  config.weights = str(tmp_path / 'w.safetensors')
  exported = tmp_path / 'exported'
  export.export_model(config, None, epath.Path(exported), platforms=['cpu'])

  room, images = tmp_path / 'room.npz', tmp_path / 'room' / folder.IMAGES
  images.mkdir(parents=True)
  files.write(room, scenes.scene(6)._replace(labels=None))
  paths = [images / f'{number}.png' for number in range(2)]
  for number, path in enumerate(paths):
    scenes.view(6, number).save(path)
  monkeypatch.syspath_prepend(exported)  # As python does for a script.
  script = runpy.run_path(str(exported / 'load_and_run.py'))
  script['main'](str(room), *map(str, paths))

  predicts = predictions.Predictor(task, variables)
  loaded = predicts.load(predictor.Input('room', (str(room),)))
  (example,) = [{name: x[None] for name, x in loaded.example.items()}]
  result = predictor.row_of(predicts.outputs(example), 0)
  record = predicts.record(loaded.shown, result, {})
  found = json.loads((tmp_path / 'room_classes.json').read_text())
  assert [*found] == [entry['name'] for entry in record['classes']]
  np.testing.assert_allclose(
    [*found.values()], [entry['probability'] for entry in record['classes']], atol=2e-4
  )
  labels = point_files.read(tmp_path / 'room_classes.ply').labels
  names, counts = np.unique(labels[labels >= 0], return_counts=True)
  assert record['labels'] == {task.class_names[i]: n for i, n in zip(names, counts, strict=True)}
  assert capsys.readouterr().out.startswith(str(room))

  with pytest.raises(SystemExit, match='looks at 2 photographs of a scene, not at 1'):
    script['main'](str(room), str(paths[0]))
  files.write(room, scenes.scene(6)._replace(supervoxels=None))
  with pytest.raises(SystemExit, match='has no array `supervoxels`'):
    script['main'](str(room), *map(str, paths))
