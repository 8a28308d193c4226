import numpy as np
import pytest

from crossattn_jax.metrics import average_precision


def test_equal_scores_are_one_threshold_and_classes_without_positives_do_not_count():
  scores = np.array([[3.0, 1.0, 0.0], [2.0, 1.0, 1.0], [1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
  labels = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]])
  values = average_precision.average_precision(scores, labels)
  # First class: precision 1 at recall 1/2, then 2/3 at 1. Second: 1/2 at 1/2, then 2/4 at 1.
  np.testing.assert_allclose(values[:2], [1 / 2 + 1 / 2 * 2 / 3, 1 / 2])
  assert np.isnan(values[2])
  mean = average_precision.mean_average_precision(scores, labels)
  assert mean == pytest.approx((5 / 6 + 1 / 2) / 2)


def test_any_increasing_function_of_the_scores_gives_the_same():
  rng = np.random.RandomState(0)
  scores, labels = rng.standard_normal((40, 3)), rng.randint(0, 2, (40, 3))
  expected = average_precision.average_precision(scores, labels)
  probabilities = 1 / (1 + np.exp(-scores))
  np.testing.assert_array_equal(
    average_precision.average_precision(probabilities, labels), expected
  )


@pytest.mark.parametrize(
  ('scores', 'labels', 'message'),
  [
    ([[0.0], [1.0]], [[0], [0]], 'none of the 1 classes has a positive'),
    ([[np.nan], [1.0]], [[0], [1]], 'NaN'),
  ],
  ids=['no positive', 'not finite'],
)
def test_what_has_no_value_is_refused(scores, labels, message):
  with pytest.raises(ValueError, match=message):
    average_precision.mean_average_precision(np.array(scores), np.array(labels))
