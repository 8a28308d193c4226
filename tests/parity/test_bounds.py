"""The parity bound, figure by figure."""

import numpy as np
import pytest

from crossattn_jax.parity import bounds


def test_relative_error_is_the_norm_of_the_difference_over_the_norm_of_the_truth():
  assert bounds.relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == pytest.approx(0.1)


def test_where_the_truth_is_zero_the_error_is_absolute():
  assert bounds.relative_error(np.array([3.0, 4.0]), np.zeros(2)) == 5.0


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_what_is_not_finite_must_agree(value):
  truth = np.array([1.0, value])
  assert bounds.relative_error(np.array([1.0, value]), truth) == 0
  assert bounds.relative_error(np.array([1.0, 2.0]), truth) == np.inf
  assert bounds.relative_error(np.array([value, 1.0]), np.array([1.0, 1.0])) == np.inf


def test_float64_holds_every_array_to_one_figure():
  assert bounds.output_bound('float64', 1e-3) == 1e-8
  assert bounds.gradient_bound('float64', {'grad_input/x': 1e-3}) == 1e-8


def test_what_the_original_rounded_to_float32_is_not_exact():
  assert bounds.output_bound('float64', 0.0, rounded=True) == 2e-6
  assert bounds.gradient_bound('float64', {}, rounded=True) == 2e-6
  assert bounds.output_bound('float32', 1e-5, rounded=True) == pytest.approx(4e-5)


def test_float32_outputs_may_be_four_times_as_far_as_pytorch():
  assert bounds.output_bound('float32', 1e-5) == pytest.approx(4e-5)
  assert bounds.output_bound('float32', 1e-7) == 2e-6


def test_float32_gradients_share_the_largest_meaningful_recorded_error():
  errors = {'out/y': 0.09, 'grad_input/x': 1e-4, 'grad_param/w': 2e-3, 'grad_param/zero': 1e9}
  assert bounds.gradient_bound('float32', errors) == pytest.approx(8e-3)
  assert bounds.gradient_bound('float32', {'grad_input/x': 1e-7}) == 1e-4


def test_negligible_gradients_are_measured_by_the_largest_norm():
  recorded = {'w': [50.0, -900.0], 'b': [2.0, 1.0]}
  assert bounds.negligible_gradient('float64', recorded) == pytest.approx(5e-6)
  assert bounds.negligible_gradient('float32', recorded) == pytest.approx(5e-4)
