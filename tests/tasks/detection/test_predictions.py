"""What is found in image files is drawn, recorded, and written as COCO's tools take it."""

import json

from etils import epath
import hotcoco
import numpy as np
from PIL import Image
import pytest

from crossattn_jax.tasks.detection import overlay

# A knowing task takes every file for the last scene.
LAST = 9


@pytest.fixture(scope='module')
def folder(knowing_task, tmp_path_factory):
  """Predictions for the last scene, in files of two sizes, by a task that knows it."""
  task, variables = knowing_task('mask_rcnn')
  tmp_path = tmp_path_factory.mktemp('predictions')
  source = task.examples('validation').source
  (tmp_path / 'scene.png').write_bytes(source[LAST]['image'])
  image = Image.open(tmp_path / 'scene.png')
  image.resize((128, 128)).save(tmp_path / 'twice.png')
  (tmp_path / 'no image.png').write_text('no image')
  task.config.task.shown_score = 0.6
  output = epath.Path(tmp_path / 'out')
  records = task.Predictor(task, variables).write_predictions(epath.Path(tmp_path), output)
  return task, source.annotations(LAST), records, output


def test_records_name_what_is_shown_best_first(folder):
  task, objects, records, output = folder
  assert json.loads((output / 'predictions.json').read_text()) == records
  assert [record['image_id'] for record in records] == [2, 3]
  (found,) = [record['objects'] for record in records if 'scene' in record['input']]
  scores = np.linspace(1, 0.5, len(objects))
  assert [each['score'] for each in found] == pytest.approx(scores[scores >= 0.6], abs=1e-4)
  for each, label, box in zip(found, objects.labels, objects.boxes, strict=False):
    assert (each['index'], each['name']) == (label, task.class_names[label])
    np.testing.assert_allclose(each['box'], box, atol=0.01)


def test_a_result_file_has_everything_and_cocos_tools_take_it(folder):
  task, objects, _, output = folder
  entries = json.loads((output / 'detections.json').read_text())
  assert len(entries) == 2 * len(objects)
  truth = hotcoco.COCO.from_arrays(
    [{'id': 2, 'height': 64, 'width': 64}],
    [{'id': number, 'name': str(number)} for number in task.category_ids],
    np.full(len(objects), 2),
    np.array(task.category_ids)[objects.labels],
    np.concatenate([objects.boxes[:, :2], objects.boxes[:, 2:] - objects.boxes[:, :2]], axis=-1),
    area=objects.area,
    segmentation=objects.run_lengths(),
  )
  of_image = [entry for entry in entries if entry['image_id'] == 2]
  for kind in ('bbox', 'segm'):
    evaluation = hotcoco.COCOeval(truth, truth.load_res(of_image), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval['precision'][0, :, :, 0, -1].max() == 1


def test_pictures_show_boxes_in_their_classes_colors(folder):
  task, objects, records, _ = folder
  color = overlay.colors(len(task.class_names))[objects.labels[0]]
  for record in records:
    picture = np.asarray(Image.open(record['picture']))
    assert picture.shape == (480, 480, 3)
  x_min, y_min, x_max, _ = objects.boxes[0] * 480 / 64
  scene = np.asarray(Image.open(records[0]['picture']))
  line = scene[int(y_min) : int(y_min) + 2, int(x_min) : int(x_max)]
  assert (line == color).all(axis=-1).mean() > 0.4


def test_numbers_of_images_are_those_of_their_names_if_all_are_numbers(knowing_task, tmp_path):
  task, variables = knowing_task()
  for name in ('000000000139.jpg', 'b/285.jpg'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.new('RGB', (64, 64)).save(tmp_path / name)
  predictor = task.Predictor(task, variables)
  given, output = epath.Path(tmp_path), epath.Path(tmp_path / 'out')
  records = predictor.write_predictions(given, output, pictures='none')
  assert [record['image_id'] for record in records] == [139, 285]
  assert 'segmentation' not in json.loads((output / 'detections.json').read_text())[0]


@pytest.mark.extended
def test_a_sheet_shows_evaluation_examples_with_their_truth(knowing_task, tmp_path):
  task, variables = knowing_task('mask_rcnn')
  predictor = task.Predictor(task, variables)
  predictor.write_samples(epath.Path(tmp_path / 'samples.png'))
  width, height = Image.open(tmp_path / 'samples.png').size
  assert width == 1200  # A page; three images beside each other.
  assert height > 500
