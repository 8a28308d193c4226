import numpy as np
import pytest

from crossattn_jax.geometry import anchor_sizes

GIVEN = (((10, 13), (16, 30)), ((30, 61), (62, 45)))


def images(centers, count=40, seed=0):
  """Sizes of boxes of images, each like one of the centers."""
  rng = np.random.RandomState(seed)
  return [rng.normal(1, 0.03, (5, 2)) * centers[i % len(centers)] for i in range(count)]


def test_recall_is_the_share_of_boxes_whose_sides_are_like_an_anchor_s():
  boxes = np.array([[10, 13], [39, 13], [41, 13], [10, 3], [200, 180], [8, 100]])
  anchors = np.array([[[10, 13]], [[60, 50]]])
  assert anchor_sizes.recall(boxes, anchors) == pytest.approx(4 / 6)
  # 41 x 13 is 60 / 41 and 50 / 13 from the larger one.
  assert anchor_sizes.recall(boxes, anchors, max_ratio=2) == pytest.approx(1 / 6)


def test_clusters_of_boxes_are_found_and_sorted_by_area():
  centers = np.array([(80, 200), (12, 8), (40, 40)])
  boxes = np.concatenate([*images(centers), np.ones((500, 2))])  # Too small ones do not count.
  found = anchor_sizes.fit(boxes, 3, np.random.default_rng(0), starts=5, generations=50)
  np.testing.assert_allclose(found, centers[[1, 2, 0]], rtol=0.05)


def test_mutations_only_make_anchors_more_like_the_boxes():
  boxes = np.exp(np.random.RandomState(0).normal(3, 1, (300, 2)))

  def likeness(generations):
    found = anchor_sizes.fit(boxes, 4, np.random.default_rng(1), starts=3, generations=generations)
    ratios = boxes[:, None] / found
    best = np.minimum(ratios, 1 / ratios).min(axis=2).max(axis=1)
    return np.mean(np.where(best > 0.25, best, 0))

  few, more = likeness(0), likeness(300)
  assert more > few + 0.01


def test_anchors_that_find_most_boxes_stay():
  assert anchor_sizes.suitable(images([(10, 13), (62, 45)]), GIVEN) is GIVEN
  assert anchor_sizes.suitable([np.zeros((0, 2))], GIVEN) is GIVEN
  assert anchor_sizes.suitable([], GIVEN) is GIVEN


def test_anchors_that_find_few_boxes_are_replaced_the_same_ones_for_a_seed():
  boxes = images([(400, 20), (300, 300), (20, 400), (5, 5)])
  options = {'starts': 5, 'generations': 20}
  found = anchor_sizes.suitable(boxes, GIVEN, seed=3, **options)
  assert found == anchor_sizes.suitable(boxes, GIVEN, seed=3, **options)
  assert np.shape(found) == (2, 2, 2)
  assert anchor_sizes.recall(np.concatenate(boxes), np.array(GIVEN)) < 0.5
  assert anchor_sizes.recall(np.concatenate(boxes), np.array(found)) == 1
  assert found[0][0] == pytest.approx((5, 5), rel=0.1)


def test_an_error_says_that_boxes_are_too_few():
  with pytest.raises(ValueError, match=r'4 anchors need boxes of as many different sizes.*has 3'):
    anchor_sizes.suitable([np.array([[400, 20], [400, 30], [400, 40.0]])], GIVEN)
