"""YOLOv5's average precision, by hand."""

import dataclasses

import numpy as np
import pytest

from crossattn_jax.metrics import coco, yolo

SQUARE = [10, 10, 20, 20]


def instances(*rows, scores=None):
  """Of rows of image, label, box."""
  image, label, box = zip(*rows, strict=True) if rows else ((), (), ())
  image, label = np.array(image, int), np.array(label, int)
  scores = None if scores is None else np.array(scores, float)
  return coco.Instances(image, label, np.reshape(box, (-1, 4)).astype(float), scores)


def evaluate(truths, found):
  right = yolo.match(truths, found)
  return yolo.average_precision(right, found.score, found.label, truths.label)


def test_a_detection_is_right_below_its_overlap_only():
  found = instances((0, 0, [10, 10, 20, 17]), (0, 0, [10, 10, 20, 15]), scores=[0.5, 0.9])
  right = yolo.match(instances((0, 0, SQUARE)), found, np.array([0.5, 0.69, 0.7]))
  # An overlap of 0.5 is not above the threshold, and does not use the object up.
  np.testing.assert_array_equal(right, [[True, True, False], [False] * 3])


def test_the_most_certain_detection_takes_the_object():
  found = instances((0, 0, SQUARE), (0, 0, [10, 10, 20, 18]), scores=[0.3, 0.6])
  right = yolo.match(instances((0, 0, SQUARE)), found)
  assert right[0].sum() == 0
  np.testing.assert_array_equal(right[1], yolo.IOU_THRESHOLDS < 0.8)


def test_a_detection_does_not_fall_back_to_its_second_object():
  truths = instances((0, 0, [0, 0, 10, 10]), (0, 0, [0, 0, 10, 8]))
  found = instances((0, 0, [0, 0, 10, 10]), (0, 0, [0, 0, 10, 9.5]), scores=[0.9, 0.8])
  np.testing.assert_array_equal(yolo.match(truths, found).any(axis=1), [True, False])


@pytest.mark.parametrize('place', [(1, 0), (0, 1)], ids=['other image', 'other class'])
def test_objects_elsewhere_are_not_found(place):
  found = instances((*place, SQUARE), scores=[0.9])
  assert not yolo.match(instances((0, 0, SQUARE)), found).any()


def test_perfect_detections_have_a_precision_of_one():
  truths = instances((0, 2, SQUARE), (1, 5, SQUARE))
  result = evaluate(truths, instances((0, 2, SQUARE), (1, 5, SQUARE), scores=[0.9, 0.8]))
  np.testing.assert_array_equal(result.classes, [2, 5])
  for values in (result.ap, result.precision, result.recall, result.f1):
    np.testing.assert_allclose(values, 1)


def test_the_area_under_a_curve_of_three_detections():
  right = np.array([[True], [False], [True]])
  result = yolo.average_precision(right, np.array([0.9, 0.8, 0.7]), np.zeros(3), np.zeros(2))
  # Precision 1 up to a recall of one half, then 2/3; the step is half a hundredth wide.
  np.testing.assert_allclose(result.ap, 0.5 + 0.5 * 2 / 3, atol=0.5 / 3 * 0.01 + 1e-9)
  # The best confidence is just below 0.7, where everything is found.
  np.testing.assert_allclose([result.precision[0], result.recall[0]], [2 / 3, 1], atol=2e-2)


def test_classes_that_are_never_found_count_as_zero():
  truths = instances((0, 0, SQUARE), (0, 1, SQUARE))
  result = evaluate(truths, instances((0, 0, SQUARE), (0, 7, SQUARE), scores=[0.9, 0.9]))
  np.testing.assert_allclose(result.ap.mean(axis=1), [1, 0])


def test_nothing_found_and_nothing_there():
  nothing = instances(scores=[])
  assert evaluate(instances((0, 0, SQUARE)), nothing).ap.tolist() == [[0] * 10]
  assert evaluate(instances(), nothing).ap.shape == (0, 10)
  assert evaluate(instances(), instances((0, 0, SQUARE), scores=[0.9])).ap.shape == (0, 10)


def test_nobody_needs_to_find_crowds():
  truths = instances((0, 0, SQUARE), (0, 0, [50, 50, 70, 70]), (1, 1, SQUARE))
  found = instances((0, 0, SQUARE), scores=[0.9])
  assert yolo.evaluate(truths, found, 'ab')['recall'] == pytest.approx(1 / 4)
  truths = dataclasses.replace(truths, crowd=np.array([False, True, True]))
  metrics = yolo.evaluate(truths, found, 'ab')
  assert metrics['map'] == metrics['recall'] == pytest.approx(1)
  assert 'map/b' not in metrics


def test_a_table_has_all_classes_that_occur():
  truths = instances((0, 0, SQUARE), (0, 2, SQUARE))
  found = instances((0, 0, SQUARE), scores=[0.9])
  names = ('person', 'car', 'bicycle')
  metrics = yolo.evaluate(truths, found, names)
  assert metrics['map50/person'] == pytest.approx(1)
  assert metrics['map75/bicycle'] == metrics['recall/bicycle'] == 0
  assert metrics['map50'] == metrics['map'] == pytest.approx(0.5)
  assert 'map/car' not in metrics
  assert yolo.table(metrics, names).splitlines()[1:] == [
    ' all       0.500   0.500   0.500   0.500   0.500',
    ' person    1.000   1.000   1.000   1.000   1.000',
    ' bicycle   0.000   0.000   0.000   0.000   0.000',
  ]
  assert yolo.evaluate(instances(), found, names) == {}
