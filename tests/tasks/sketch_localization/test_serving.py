"""An exported sketch localizer finds what the model finds, without this library."""

import json
import runpy

from etils import epath
import jax
import numpy as np
from PIL import Image, ImageDraw
import pytest

from crossattn_jax import tasks
from crossattn_jax.data import samples
from crossattn_jax.data.detection import batches as photos
from crossattn_jax.data.sketch_localization import rasters, reading
from crossattn_jax.models import variables_io
from crossattn_jax.training import export

FISH = samples.FOLDER / 'sketches' / 'fish.svg'


def random_variables(task):
  """Of a network that finds many things; nothing is compiled."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    spread = 0.1 if len(leaf.shape) < 2 else 1 / np.sqrt(np.prod(leaf.shape[:-1]))
    values = spread * rng.standard_normal(leaf.shape)
    values += 'scale' in str(path[-1])
    return (np.abs(values) + 0.5 if 'var' in str(path[-1]) else values).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(task.init, jax.random.key(0)))


@pytest.mark.extended
def test_the_script_finds_what_the_model_finds(small_config, tmp_path, monkeypatch, capsys):
  config = small_config()
  config.dataset.sketches.count = 2
  config.dataset.sketches.style = 'repaired'
  config.task.evaluation.max_boxes = 5
  config.num_steps = 1
  task = tasks.create_task(config)
  variables = random_variables(task)
  saved = {name: x for name, x in config.model.items() if x is not None and name != 'name'}
  weights = tmp_path / 'w.safetensors'
  variables_io.save_variables(weights, variables, config.model.name, saved)
  config.weights = str(weights)
  exported = tmp_path / 'exported'
  export.export_model(config, None, epath.Path(exported), platforms=['cpu'])

  rng = np.random.default_rng(0)
  photo, picture, strokes = (str(tmp_path / name) for name in ('7.png', 'sketch.png', 's.json'))
  Image.fromarray(rng.integers(256, size=(90, 50, 3), dtype=np.uint8)).save(photo)
  drawn = Image.new('RGBA', (130, 90))
  ImageDraw.Draw(drawn).line([(20, 30), (110, 20), (60, 80), (20, 30)], 'red', 7)
  drawn.save(picture)
  with open(strokes, 'w') as file:
    json.dump({'drawing': [[[0, 255, 3], [0, 40, 200]], [[9, 9], [100, 7]]]}, file)
  monkeypatch.syspath_prepend(exported)  # As python does for a script.
  run = runpy.run_path(str(exported / 'load_and_run.py'))
  run['main'](photo, picture, strokes)

  batch, _ = photos.read_image(photo, config.dataset)
  sketches = [reading.read(path).strokes for path in (picture, strokes)]
  pixels = [rasters.raster(drawing, config.dataset.sketches) for drawing in sketches]
  batch['sketches'] = np.stack([rasters.normalized(x, config.dataset) for x in pixels])[None]
  found, _ = jax.jit(task.detect)(variables, batch)
  written = json.loads((tmp_path / '7_objects.json').read_text())
  corners = np.array([entry['bbox'] for entry in written])
  corners[:, 2:] += corners[:, :2]
  np.testing.assert_allclose(corners, found.boxes[0], atol=0.01)
  np.testing.assert_allclose([entry['score'] for entry in written], found.scores[0], atol=1e-5)
  assert written[0]['image_id'] == 7
  assert Image.open(tmp_path / '7_objects.png').size == (480, 864)
  assert '7.png' in capsys.readouterr().out

  lines = run['read_sketch'](FISH)
  for line, read in zip(lines, reading.read(FISH).strokes, strict=True):
    np.testing.assert_allclose(line, read)

  (tmp_path / 'empty.png').write_bytes(b'')
  for given, message in (
    ([photo] * 3, 'takes 2 sketches'),
    ([str(tmp_path / 'empty.png')], 'cannot read'),
  ):
    with pytest.raises(SystemExit, match=message):
      run['main'](photo, *given)
