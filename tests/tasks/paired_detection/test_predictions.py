"""What is found in pairs of files is drawn over both, recorded, and written for other tools."""

import json

from etils import epath
import numpy as np
from PIL import Image
import pytest

from crossattn_jax.tasks.detection import overlay

# A knowing task takes every pair for the last scene.
LAST = 9


@pytest.fixture(scope='module')
def folder(knowing_task, tmp_path_factory):
  """Predictions for the last scene, in files of two sizes, by a task that knows it."""
  task, variables = knowing_task()
  tmp_path = tmp_path_factory.mktemp('predictions')
  example = task.examples('validation').source[LAST]
  for kind, name in (('rgb', 'visible'), ('thermal', 'lwir')):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'scene.png').write_bytes(example[kind])
    Image.open(tmp_path / name / 'scene.png').resize((128, 128)).save(tmp_path / name / 'twice.png')
  task.config.task.shown_score = 0.6
  task.config.task.kaist_file = True
  output = epath.Path(tmp_path / 'out')
  records = task.Predictor(task, variables).write_predictions(epath.Path(tmp_path), output)
  return task, task.examples('validation').source.annotations(LAST), records, output


def test_records_name_both_files_and_what_is_shown_in_their_pixels(folder):
  task, objects, records, output = folder
  assert json.loads((output / 'predictions.json').read_text()) == records
  scores = np.linspace(1, 0.5, len(objects))
  for record, name, factor in zip(records, ('scene', 'twice'), (1, 2), strict=True):
    assert record['rgb'].endswith(f'visible/{name}.png')
    assert record['thermal'].endswith(f'lwir/{name}.png')
    found = record['objects']
    assert [each['score'] for each in found] == pytest.approx(scores[scores >= 0.6], abs=1e-4)
    for each, label, box in zip(found, objects.labels, objects.boxes, strict=False):
      assert (each['index'], each['name']) == (label, task.class_names[label])
      np.testing.assert_allclose(each['box'], factor * box, atol=0.01)


def test_result_files_have_everything_as_coco_and_kaist_take_it(folder):
  _, objects, records, output = folder
  entries = json.loads((output / 'detections.json').read_text())
  lines = np.loadtxt((output / 'detections.txt').read_text().splitlines(), delimiter=',')
  assert len(entries) == len(lines) == 2 * len(objects)
  assert {entry['image_id'] for entry in entries} == {r['image_id'] for r in records} == {1, 2}
  x_min, y_min, x_max, y_max = objects.boxes.T
  expected = np.stack([x_min, y_min, x_max - x_min, y_max - y_min], axis=1)
  for factor, number in ((1, 1), (2, 2)):
    boxes = [entry['bbox'] for entry in entries if entry['image_id'] == number]
    np.testing.assert_allclose(boxes, factor * expected, atol=0.01)
    own = lines[lines[:, 0] == number]
    np.testing.assert_allclose(own[:, 1:5], factor * expected, atol=0.01)
    np.testing.assert_allclose(own[:, 5], np.linspace(1, 0.5, len(objects)), atol=1e-6)


def test_pictures_show_boxes_over_both_images(folder):
  task, objects, records, _ = folder
  color = overlay.colors(len(task.class_names))[objects.labels[0]].astype(int)
  picture = np.asarray(Image.open(records[0]['picture']).convert('RGB')).astype(int)
  near = (np.abs(picture - color) < 12).all(axis=-1)
  halves = np.array_split(near[: len(near) // 2], 2, axis=1)
  assert min(half.sum() for half in halves) > 200


def test_maps_are_shown_where_the_files_are(knowing_task):
  task, variables = knowing_task()
  predictor = task.Predictor(task, variables)
  batch = next(iter(task.eval_data(2, 0, 1)))
  example, result = (
    {k: x[0] for k, x in each.items()} for each in (batch, predictor.outputs(batch))
  )
  found = predictor.shown_objects(result)
  (look,) = predictor._looks(example, result, found)
  assert look.title == f'{task.class_names[found.labels[0]]} 1.00'
  assert look.rgb.shape == look.thermal.shape == look.query.shape == (96, 96)
  # Cells of 8 pixels, and a border of 16 on the left: where all weigh the same, each would be 1.
  assert np.unique(look.rgb).tolist() == [0, 12 * 16]
  for values, (y, x) in ((look.rgb, (0, 0)), (look.query, (16, 16)), (look.thermal, (0, 88))):
    rows, columns = np.nonzero(values)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (y, y + 7, x, x + 7)


def test_pairs_that_differ_in_size_and_lonely_files_are_refused_with_both_names(
  knowing_task, tmp_path
):
  task, variables = knowing_task()
  for name, side in (('rgb', 64), ('ir', 32)):
    (tmp_path / name).mkdir()
    Image.new('RGB', (side, side)).save(tmp_path / name / 'a.png')
  predictor, output = task.Predictor(task, variables), epath.Path(tmp_path / 'out')
  with pytest.raises(ValueError, match=r"rgb/a\.png' has 64 x 64 pixels, '.*ir/a\.png' 32 x 32"):
    predictor.write_predictions(epath.Path(tmp_path), output)
  (tmp_path / 'ir' / 'a.png').rename(tmp_path / 'ir' / 'b.png')
  with pytest.raises(ValueError, match=r"rgb/a\.png' has no partner: expected '.*/ir' to have"):
    predictor.write_predictions(epath.Path(tmp_path), output)


@pytest.mark.extended
def test_a_sheet_shows_evaluation_pairs_with_their_truth(knowing_task, tmp_path):
  task, variables = knowing_task()
  task.Predictor(task, variables).write_samples(epath.Path(tmp_path / 'samples.png'))
  width, height = Image.open(tmp_path / 'samples.png').size
  assert width > 1000
  assert height > 1000
