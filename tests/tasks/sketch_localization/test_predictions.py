"""What sketches find is drawn, recorded, and written for other tools."""

import json
import pathlib

from etils import epath
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from crossattn_jax import config_errors, tasks
from crossattn_jax.data import samples
from crossattn_jax.heads.detection import types
from crossattn_jax.tasks.sketch_localization import predictions
from crossattn_jax.training import loop

SKETCHES = samples.FOLDER / 'sketches'
THINNED = 'lines thinned, which were 6 pixels wide'


@pytest.fixture
def knowing_predictor(small_config, monkeypatch):
  """A predictor that needs no model: of each photo it finds the left half and a faint spot."""

  def make(sketch):
    config = small_config()
    config.predict.sketch = sketch
    config.task.shown_score = 0.5
    task = tasks.create_task(config)

    def find(variables, batch):
      height, width = batch['original_size'].astype(float).T[..., None, None]
      boxes = jnp.array([[[0, 0, 0.5, 1], [0.8, 0.8, 0.9, 0.9]]])
      found = types.Detections(
        boxes * jnp.concatenate([width, height, width, height], axis=-1),
        jnp.tile(jnp.array([0.9, 0.1]), (len(width), 1)),
        jnp.zeros((len(width), 2), int),
      )
      count, rows, columns = len(width), *(side // 4 for side in batch['image'].shape[1:3])
      looks = {f'attention_{i}': jnp.full((count, rows * columns, 4), 0.25) for i in range(4)}
      maps = {f'stage_{i}': jnp.zeros((count, rows, columns, 1)) for i in range(4)}
      return found, jnp.ones(count, bool), looks | maps

    monkeypatch.setattr(task, 'find', find)
    return task.Predictor(task, {})

  return make


@pytest.fixture
def photos(tmp_path):
  (tmp_path / 'photos').mkdir()
  for name, size in (('1', (64, 64)), ('2', (200, 100))):
    shades = np.random.RandomState(0).randint(0, 60, (*size[::-1], 3))
    Image.fromarray(shades.astype(np.uint8)).save(tmp_path / 'photos' / f'{name}.png')
  return epath.Path(tmp_path / 'photos')


def test_records_and_result_file_say_what_was_found_by_which_sketch(
  knowing_predictor, photos, tmp_path
):
  sketch, output = str(SKETCHES / 'house.png'), epath.Path(tmp_path / 'out')
  records = knowing_predictor(sketch).write_predictions(photos, output, 'none')
  assert json.loads((output / 'predictions.json').read_text()) == records
  for record, (width, height) in zip(records, ((64, 64), (200, 100)), strict=True):
    (found,) = record['objects']
    np.testing.assert_allclose(found['box'], [0, 0, width / 2, height], atol=0.01)
    assert found['score'] == 0.9
    assert record['sketches'] == {
      sketch: f'light on dark; cropped to the ink, 81% of it; {THINNED}'
    }
  entries = json.loads((output / 'detections.json').read_text())
  assert [(x['image_id'], round(x['score'], 1)) for x in entries] == [
    (1, 0.9), (1, 0.1), (2, 0.9), (2, 0.1)
  ]  # fmt: skip


def test_pictures_show_the_sketch_where_it_hides_nothing(knowing_predictor, photos, tmp_path):
  predictor = knowing_predictor(str(SKETCHES / 'fish.svg'))
  (record,) = predictor.write_predictions(photos / '2.png', epath.Path(tmp_path / 'out'))
  picture = np.asarray(Image.open(record['picture']).convert('RGB')).astype(int)
  # The photo is dark, and its left half found.
  half = picture[:, : picture.shape[1] // 2]
  frame = (np.abs(half - (255, 165, 0)) < 30).all(axis=-1)
  assert frame.sum() > 100
  assert np.nonzero(frame)[1].min() > half.shape[1] // 2


def test_several_sketches_are_of_one_object(knowing_predictor, photos, tmp_path):
  given = ', '.join(str(SKETCHES / name) for name in ('fish.svg', 'drop.ndjson'))
  predictor, output = knowing_predictor(given), epath.Path(tmp_path / 'out')
  (record,) = predictor.write_predictions(photos / '1.png', output, 'none')
  assert [pathlib.Path(path).name for path in record['sketches']] == ['fish.svg', 'drop.ndjson']
  predictor.task.config.predict.sketch = str(SKETCHES)
  assert len(predictions.read_sketches(predictor.task.config)) == 4


def test_what_is_done_to_sketches_is_said_in_a_line_each(small_config, tmp_path):
  config = small_config()
  photo = samples.FOLDER / 'scenes' / '0.jpg'
  config.predict.sketch = f'{SKETCHES / "cup.png"},{photo}'
  task = tasks.create_task(config)
  cup, _, warning = task.Predictor.check(task)
  assert cup == (
    f'sketch {SKETCHES / "cup.png"}: dark on light; cropped to the ink, 71% of it; {THINNED}; '
    'drawn as those that were learnt from: in 1-pixel lines, white on black'
  )
  assert warning.startswith(f'warning: sketch {photo}: it looks like a photo')


def test_predicting_needs_a_sketch_before_weights(small_config, tmp_path):
  config = small_config()
  config.num_epochs, config.schedule.learning_rate = 1.0, 1e-3
  photo = epath.Path(samples.FOLDER / 'shapes')
  with pytest.raises(config_errors.ConfigError) as error:
    loop.predict(config, epath.Path(tmp_path / 'run'), photo, epath.Path(tmp_path / 'out'))
  assert '--config.predict.sketch=FILE' in str(error.value)
  assert 'crossattn_jax/samples/sketches/cup.png' in str(error.value)
  for name in ('cup.png', 'house.png', 'fish.svg', 'drop.ndjson'):
    assert name in str(error.value)
    assert (SKETCHES / name).exists()


def test_sketches_that_are_not_there_are_named(small_config, tmp_path):
  config = small_config()
  config.predict.sketch = f'{SKETCHES / "cup.png"},{SKETCHES / "cap.png"}'
  with pytest.raises(FileNotFoundError, match=r'cap\.png does not exist; expected a drawing'):
    predictions.read_sketches(config)
  config.predict.sketch = str(tmp_path)
  with pytest.raises(FileNotFoundError, match=f'{tmp_path}: there is no drawing'):
    predictions.read_sketches(config)


def test_a_page_asks_for_photo_and_sketch(knowing_predictor, photos, tmp_path):
  predictor = knowing_predictor(None)
  assert [field.name for field in predictor.fields] == ['image', 'sketch']
  given = {'image': photos / '1.png', 'sketch': epath.Path(SKETCHES / 'cup.png')}
  (record,) = predictor.write_predictions(
    predictor.input_of(given), epath.Path(tmp_path / 'out'), 'none'
  )
  assert list(record['sketches']) == [str(SKETCHES / 'cup.png')]


def test_a_sheet_shows_evaluation_photos_with_their_truth(knowing_predictor, tmp_path):
  predictor = knowing_predictor(None)
  samples_shown = []
  predictor.draw_sheet = lambda path, shown: samples_shown.extend(shown)
  predictor.write_samples(epath.Path(tmp_path / 'samples.png'))
  source = predictor.task.examples(predictor.task.config.dataset.eval_split).source
  assert len(samples_shown) == predictor.num_samples
  queries = {source.categories[source.category(i)] for i in range(len(source))}
  for sample in samples_shown:
    assert sample.name in queries
    assert sample.sketches.shape == (1, 32, 32, 3)
    assert len(sample.true.boxes)
    np.testing.assert_allclose(sample.found.boxes, [[0, 0, 32, 64]])
