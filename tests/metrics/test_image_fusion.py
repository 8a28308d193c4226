"""Closed forms and limits; the recorded suite is replayed in tests/parity."""

import inspect

import numpy as np
import pytest

from crossattn_jax.metrics import image_fusion as metrics


@pytest.fixture(scope='module')
def image():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (176, 180)).astype(np.uint8)


def test_metrics_of_one_image_have_their_closed_forms():
  halves = np.zeros((8, 8))
  halves[:, 4:] = 100
  assert metrics.entropy(halves) == 1
  assert metrics.standard_deviation(halves) == 50
  assert metrics.spatial_frequency(halves) == pytest.approx(100 / np.sqrt(7))
  # Central differences are 50 in the two columns at the edge.
  assert metrics.average_gradient(halves) == pytest.approx(50 / np.sqrt(2) / 4)
  assert metrics.mutual_information(halves, halves) == pytest.approx(np.log(2))


def test_a_copy_is_perfect(image):
  assert metrics.structural_similarity(image, image) == pytest.approx(1)
  assert metrics.multi_scale_structural_similarity(image, image) == pytest.approx(1)
  assert metrics.visual_information_fidelity(image, image) == pytest.approx(1, abs=1e-6)
  assert metrics.correlation(image, image) == pytest.approx(1)
  assert metrics.peak_signal_to_noise(metrics.mean_squared_error(image, image)) == float('inf')


def test_multi_scale_similarity_counts_luminance_at_the_coarsest_scale_only():
  """Flat images differ in luminance alone."""
  first, second = np.full((176, 176), 100.0), np.full((176, 176), 140.0)
  luminance = (2 * 100 * 140 + 2.55**2) / (100**2 + 140**2 + 2.55**2)
  assert metrics.structural_similarity(first, second) == pytest.approx(luminance)
  result = metrics.multi_scale_structural_similarity(first, second)
  assert result == pytest.approx(luminance**0.1333)


def test_flat_images_give_numbers():
  flat = np.full((48, 48), 7, np.uint8)
  results = metrics.fusion_metrics(flat, flat, flat)
  assert results['CC'] == results['SCD'] == results['EN'] == 0
  assert not any(np.isnan(value) for value in results.values())
  assert metrics.fusion_metrics(flat * 0, flat, flat)['PSNR_maxF'] == float('-inf')
  # Beyond the images is black, so that only black ones have no edge at all.
  assert metrics.edge_preservation(flat * 0, flat * 0, flat * 0) == 0


def test_the_suite_has_every_metric_once_and_multi_scale_similarity_of_large_images(image):
  large = metrics.fusion_metrics(image, image[::-1], image[:, ::-1])
  assert list(large) == list(metrics.DIRECTIONS)
  small = metrics.fusion_metrics(image[:48, :48], image[48:96, :48], image[:48, 48:96])
  assert set(large) - set(small) == {'MS_SSIM'}
  assert set(metrics.HEADLINE) < set(small)
  assert large['MI_bits'] == pytest.approx(large['MI_nats'] / np.log(2))
  assert large['SSIM_sum'] == pytest.approx(2 * large['SSIM_mean'])


def test_better_knows_the_direction():
  assert metrics.better('EN', 2, 1)
  assert not metrics.better('MSE', 2, 1)


def test_images_that_cannot_be_compared_are_refused(image):
  with pytest.raises(ValueError, match=r'of one size, not \(176, 180\), \(175, 180\)'):
    metrics.fusion_metrics(image, image[1:], image)
  with pytest.raises(ValueError, match=r'VIF needs at least 41 x 41 pixels, not \(40, 60\)'):
    metrics.visual_information_fidelity(image[:40, :60], image[:40, :60])
  metrics.visual_information_fidelity(image[:41, :41], image[:41, :41])
  with pytest.raises(ValueError, match='MS-SSIM needs at least 176 x 176'):
    metrics.multi_scale_structural_similarity(image[:175], image[:175])
  with pytest.raises(ValueError, match='SSIM needs at least 11 x 11'):
    metrics.structural_similarity(image[:10], image[:10])


FUNCTIONS = (
  metrics.entropy,
  metrics.standard_deviation,
  metrics.spatial_frequency,
  metrics.average_gradient,
  metrics.mutual_information,
  metrics.correlation,
  metrics.correlation_of_differences,
  metrics.mean_squared_error,
  metrics.structural_similarity,
  metrics.multi_scale_structural_similarity,
  metrics.visual_information_fidelity,
  metrics.edge_preservation,
  metrics.fusion_metrics,
)


@pytest.mark.parametrize('function', FUNCTIONS, ids=lambda function: function.__name__)
def test_levels_that_are_no_grey_levels_are_refused_by_name(image, function):
  names = list(inspect.signature(function).parameters)
  images = dict.fromkeys(names, image.astype(np.float32))
  function(**images)
  infinite = image.astype(np.float32)
  infinite[3, 4] = np.inf
  wrong = {
    r'1 of the 31680 levels of {} are not finite': infinite,
    r'{} has levels of 0 to 1, which are fractions of 1; .* multiply by 255': image / 255,
    r'{} has levels of -1 to 254; expected 0 to 255': image - 1.0,
    r'{} has levels of 0 to 510; expected 0 to 255': image * 2.0,
  }
  for name in names:
    for message, levels in wrong.items():
      with pytest.raises(ValueError, match=message.format(name)):
        function(**images | {name: levels})


def test_dark_images_are_no_fractions():
  dark = np.zeros((48, 48), np.uint8)
  dark[:, 24:] = 1
  assert metrics.entropy(dark.astype(np.float64)) == 1
