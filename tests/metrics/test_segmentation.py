import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.metrics import segmentation as metrics

RNG = np.random.RandomState(0)
LABELS = RNG.choice([0, 1, 3, 255], size=(3, 20, 30))
PREDICTIONS = RNG.choice([0, 1, 2, 3], size=LABELS.shape)


def _counts(labels, predictions, keep):
  expected = np.zeros((5, 5), int)
  np.add.at(expected, (labels[keep], predictions[keep]), 1)
  return expected


def test_the_confusion_matrix_counts_pixels_with_a_class():
  confusion = metrics.confusion_matrix(jnp.asarray(LABELS), jnp.asarray(PREDICTIONS), 5)
  np.testing.assert_array_equal(confusion, _counts(LABELS, PREDICTIONS, LABELS != 255))
  confusion = metrics.host_confusion_matrix(LABELS, PREDICTIONS, 5)
  np.testing.assert_array_equal(confusion, _counts(LABELS, PREDICTIONS, LABELS != 255))


def test_masked_pixels_do_not_count():
  mask = RNG.rand(*LABELS.shape) < 0.5
  confusion = metrics.confusion_matrix(
    jnp.asarray(LABELS), jnp.asarray(PREDICTIONS), 5, mask=jnp.asarray(mask)
  )
  np.testing.assert_array_equal(confusion, _counts(LABELS, PREDICTIONS, mask & (LABELS != 255)))


@pytest.mark.parametrize(('label', 'prediction'), [(-1, 1), (5, 1), (254, 0), (1, -1), (1, 5)])
def test_what_is_no_class_counts_as_none(label, prediction):
  labels, predictions = np.full((2, 3), 2), np.full((2, 3), 2)
  labels[0, 0], predictions[0, 0] = label, prediction
  confusion = metrics.confusion_matrix(jnp.asarray(labels), jnp.asarray(predictions), 5)
  expected = np.zeros((5, 5), int)
  expected[2, 2] = 5
  np.testing.assert_array_equal(confusion, expected)
  np.testing.assert_array_equal(metrics.host_confusion_matrix(labels, predictions, 5), expected)


def test_absent_classes_count_as_zero_or_not_at_all():
  confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
  iou = metrics.intersection_over_union(confusion)
  np.testing.assert_allclose(iou, [3 / 4, 4 / 5, np.nan])
  assert metrics.mean_over_classes(iou, 'zero') == pytest.approx((3 / 4 + 4 / 5) / 3)
  assert metrics.mean_over_classes(iou, 'skip') == pytest.approx((3 / 4 + 4 / 5) / 2)
  np.testing.assert_allclose(metrics.class_accuracy(confusion), [3 / 4, 1, np.nan])
  assert metrics.pixel_accuracy(confusion) == 7 / 8
  with pytest.raises(ValueError, match="absent='nan' is neither"):
    metrics.mean_over_classes(iou, 'nan')


def test_counts_beyond_float32_stay_exact():
  confusion = np.array([[2**40 + 1, 0], [0, 1]])
  assert metrics.pixel_accuracy(confusion) == 1.0
  assert metrics.intersection_over_union(confusion).tolist() == [1, 1]


def test_a_table_has_a_line_for_each_class_and_no_number_for_one_that_does_not_occur():
  values = {'iou/sky': 0.5, 'iou/a dog': 0.25, 'mean_iou': 0.375}
  totals = {'mean IoU': 'mean_iou'}
  assert metrics.table(values, ('sky', 'a dog', 'sea'), totals).splitlines() == [
    'class       IoU',
    'sky       0.500',
    'a dog     0.250',
    'sea           -',
    'mean IoU  0.375',
  ]
  many = tuple(map(str, range(150)))
  assert metrics.table(values, many, totals).splitlines()[1:] == ['mean IoU  0.375']
