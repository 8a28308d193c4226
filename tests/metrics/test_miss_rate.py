"""KAIST's miss rates, by hand."""

import numpy as np
import pytest

from crossattn_jax.metrics import coco, miss_rate

# 100 pixels high: counts in 'all', 'day' or 'night', 'medium' and 'none'.
PERSON = (100, 100, 140, 200)
ELSEWHERE = (300, 100, 340, 200)
FEW = (miss_rate.FALSE_POSITIVES < 0.25).sum()


def pedestrians(*boxes, images=None, occlusion=0, ignored=False):
  count = len(boxes)
  return miss_rate.Pedestrians(
    image=np.arange(count) if images is None else np.array(images),
    box=np.reshape(boxes, (-1, 4)).astype(float),
    occlusion=np.broadcast_to(occlusion, count),
    ignored=np.broadcast_to(ignored, count),
  )


def detections(*rows):
  """Of rows of image, box, score."""
  image, box, score = zip(*rows, strict=True) if rows else ((), (), ())
  boxes = np.reshape(box, (-1, 4)).astype(float)
  return coco.Instances(np.array(image, int), np.zeros(len(rows), int), boxes, np.array(score))


def evaluate(truths, found, images=4, official=False, setting='all'):
  return miss_rate.miss_rates(truths, found, np.full(images, True), official)[setting]


def test_the_log_average_of_misses():
  truths = pedestrians(*[PERSON] * 4)
  found = detections((3, ELSEWHERE, 0.95), (1, PERSON, 0.9), (2, PERSON, 0.8))
  result = evaluate(truths, found)
  np.testing.assert_allclose(result.false_positives, [0.25] * 3)
  np.testing.assert_allclose(result.misses, [1, 0.75, 0.5])
  # Below a quarter of a false positive per image, nobody is found.
  np.testing.assert_allclose(result.recall, [0] * FEW + [0.5] * (9 - FEW))
  logs = [np.log(1 + 1e-5)] * FEW + [np.log(0.5 + 1e-5)] * (9 - FEW)
  np.testing.assert_allclose(result.rate, np.exp(np.mean(logs)))


def test_the_official_script_skips_images_and_reads_the_final_recall():
  truths = pedestrians(*[PERSON] * 4)
  found = detections((3, ELSEWHERE, 0.95), (1, PERSON, 0.9), (2, PERSON, 0.8))
  result = evaluate(truths, found, official=True)
  # Image 0 has no detection: of the three pedestrians that count, two are found.
  np.testing.assert_allclose(result.recall, [2 / 3] * 9)
  np.testing.assert_allclose(result.rate, 1 / 3 + 1e-5)


def test_the_official_script_never_finds_the_first_annotation():
  truths = pedestrians(PERSON, PERSON)
  found = detections((0, PERSON, 0.8), (1, PERSON, 0.9))
  np.testing.assert_allclose(evaluate(truths, found, 2).misses, [0.5, 0])
  result = evaluate(truths, found, 2, official=True)
  np.testing.assert_allclose(result.misses, [0.5, 0.5])
  np.testing.assert_allclose(result.false_positives, [0, 0.5])


def test_the_order_of_detections_matters_to_the_official_script_only():
  truths = pedestrians(PERSON, PERSON, ELSEWHERE, images=[0, 1, 1])
  rows = [(1, PERSON, 0.9), (1, ELSEWHERE, 0.8), (1, (0, 0, 9, 50), 0.7)]
  turned = [rows[2], rows[0], rows[1]]
  for official in (False, True):
    sorted_rate, rate = (
      evaluate(truths, detections(*each), 2, official).rate for each in (rows, turned)
    )
    assert (rate == sorted_rate) != official


def test_ignored_people_absorb_detections_that_found_nobody_else():
  truths = pedestrians(PERSON, (100, 100, 180, 200), images=[0, 0], ignored=[False, True])
  found = detections((0, PERSON, 0.9), (0, PERSON, 0.8), (0, (140, 100, 180, 200), 0.7))
  result = evaluate(truths, found, 1)
  np.testing.assert_allclose(result.misses, [0])
  np.testing.assert_allclose(result.false_positives, [0])


def test_a_second_detection_of_a_pedestrian_is_wrong():
  result = evaluate(pedestrians(PERSON), detections((0, PERSON, 0.9), (0, PERSON, 0.8)), 1)
  np.testing.assert_allclose(result.false_positives, [0, 1])


@pytest.mark.parametrize(
  ('box', 'occlusion', 'settings'),
  [
    (PERSON, 0, {'all', 'day', 'medium', 'none'}),
    (PERSON, 1, {'all', 'day', 'partial'}),
    (PERSON, 2, {'heavy'}),
    ((100, 100, 150, 220), 0, {'all', 'day', 'near', 'none'}),
    ((100, 100, 150, 215), 0, {'all', 'day', 'near', 'medium', 'none'}),
    ((100, 100, 150, 150), 0, {'medium', 'none'}),
    ((100, 100, 150, 145), 0, {'medium', 'far', 'none'}),
    ((4, 100, 44, 200), 0, set()),
    ((600, 100, 636, 200), 0, set()),
    ((595, 407, 635, 507), 0, {'all', 'day', 'medium', 'none'}),
  ],
)
def test_who_must_be_found_in_which_setting(box, occlusion, settings):
  truths = pedestrians(box, occlusion=occlusion)
  results = miss_rate.miss_rates(truths, detections(), np.array([True, False]), official=False)
  assert {name for name, result in results.items() if not np.isnan(result.rate)} == settings


def test_day_and_night_are_parts_of_the_images():
  truths = pedestrians(PERSON, PERSON)
  found = detections((1, PERSON, 0.9), (1, ELSEWHERE, 0.8))
  results = miss_rate.miss_rates(truths, found, np.array([False, True]))
  np.testing.assert_allclose(results['night'].rate, 1 + 1e-5)
  np.testing.assert_allclose(results['day'].rate, 1e-5)
  np.testing.assert_allclose(results['day'].false_positives, [0, 1])


@pytest.mark.parametrize('official', [False, True])
def test_without_detections_everybody_is_missed(official):
  result = evaluate(pedestrians(PERSON), detections(), 1, official)
  np.testing.assert_allclose(result.rate, 1 + 1e-5)
  assert np.isnan(evaluate(pedestrians(), detections(), 1, official).rate)


def test_heights_may_be_annotated_apart_from_boxes():
  truths = pedestrians(PERSON)
  tall = miss_rate.Pedestrians(
    truths.image, truths.box, truths.occlusion, truths.ignored, np.array([115])
  )
  assert np.isnan(evaluate(truths, detections(), 1, setting='near').rate)
  assert not np.isnan(evaluate(tall, detections(), 1, setting='near').rate)
