"""An exported network of points labels files as the network does, without this library."""

import runpy

from etils import epath
import jax
import numpy as np
import pytest

from crossattn_jax import tasks
from crossattn_jax.data.scene_points import batches, point_files, sources
from crossattn_jax.models import variables_io
from crossattn_jax.training import export


@pytest.mark.extended
def test_the_script_labels_what_the_model_labels(
  small_config, random_variables, rooms, tmp_path, monkeypatch, capsys
):
  config = small_config
  config.dataset.class_values, config.dataset.evaluation.votes = (2, 1, 5, 39), 2
  config.num_steps = 1
  task = tasks.create_task(config)
  variables = random_variables(task)
  saved = {name: x for name, x in config.model.items() if x is not None and name != 'name'}
  variables_io.save_variables(tmp_path / 'w.safetensors', variables, config.model.name, saved)
  config.weights = str(tmp_path / 'w.safetensors')
  exported = tmp_path / 'exported'
  export.export_model(config, None, epath.Path(exported), platforms=['cpu'])

  scene = rooms[1]._replace(labels=None)
  room = tmp_path / 'room.ply'
  point_files.write_ply(room, scene)
  monkeypatch.syspath_prepend(exported)  # As python does for a script.
  script = runpy.run_path(str(exported / 'load_and_run.py'))
  script['main']([str(room)])

  monkeypatch.setattr(
    batches.SegmentationExamples,
    'open_source',
    staticmethod(lambda *_: sources.MemorySource([scene], config.dataset.class_names)),
  )
  examples = batches.SegmentationExamples(config.dataset, 'val')
  batch = next(iter(examples.eval_batches(batch_size=2)))
  logits = np.asarray(jax.jit(task.logits)(variables, batch))
  inverse = [examples.voxels(0, vote).inverse for vote in range(2)]
  classes = sum(logits[vote][inverse[vote]] for vote in range(2)).argmax(axis=-1)
  assert len(np.unique(classes)) > 1
  labels = np.array([2, 1, 5, 39])[classes]
  assert (tmp_path / 'room_labels.txt').read_text().split() == labels.astype(str).tolist()
  colored = point_files.read(tmp_path / 'room_classes.ply')
  np.testing.assert_array_equal(colored.labels, labels)
  assert len(np.unique(colored.colors, axis=0)) == len(np.unique(classes))
  assert 'room.ply  wall ' in capsys.readouterr().out
  # Several scenes at once.
  _, model = script['load'](exported)
  inputs = {name: batch[name] for name in tasks.create_task(config).Serving(task).inputs}
  np.testing.assert_allclose(model(inputs)['logits'], logits, rtol=1e-4, atol=1e-4)

  point_files.write_ply(room, scene._replace(points=4 * scene.points))
  (tmp_path / 'none.ply').write_bytes(b'no points')
  for given, message in (
    (room, 'more voxels .*dataset.buckets'),
    (tmp_path / 'none.ply', 'cannot'),
  ):
    with pytest.raises(SystemExit, match=message):
      script['main']([str(given)])
