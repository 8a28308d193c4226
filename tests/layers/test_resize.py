import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from crossattn_jax.layers import resize


def _cubic(z):
  """The spec's piecewise cubic with a = -0.75."""
  a, z = -0.75, abs(z)
  if z <= 1:
    return (a + 2) * z**3 - (a + 3) * z**2 + 1
  return a * z**3 - 5 * a * z**2 + 8 * a * z - 4 * a if z < 2 else 0.0


@pytest.mark.parametrize(('size_in', 'size_out'), [(9, 6), (5, 8), (240, 224), (1, 4), (3, 1)])
def test_bicubic_weights_are_torch_s_formula(size_in, size_out):
  expected = np.zeros((size_out, size_in))
  for k in range(size_out):
    u = (k + 0.5) * size_in / size_out - 0.5
    f = int(np.floor(u))
    for sample in range(f - 1, f + 3):
      expected[k, min(max(sample, 0), size_in - 1)] += _cubic(u - sample)
  np.testing.assert_allclose(resize.resize_matrix(size_in, size_out), expected, atol=1e-14)


def test_bilinear_interpolates_between_pixel_centres_and_replicates_the_border():
  expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
  np.testing.assert_allclose(resize.resize_matrix(2, 4, 'bilinear'), expected)


@pytest.mark.parametrize('method', ['bilinear', 'bicubic'])
def test_constants_stay_constant(method):
  image = jnp.full((2, 7, 5, 3), 2.5)
  np.testing.assert_allclose(resize.resize(image, (4, 11), method), 2.5, rtol=1e-6)


def test_the_same_size_returns_the_same_pixels():
  image = jnp.asarray(np.random.RandomState(0).standard_normal((1, 6, 5, 2)), jnp.float32)
  np.testing.assert_array_equal(resize.resize(image, (6, 5)), image)


def test_rows_and_columns_are_resized_independently():
  with jax.enable_x64(True):
    image = jnp.asarray(np.random.RandomState(0).standard_normal((2, 9, 11, 3)))
    out = resize.resize(image, (12, 7))
  rows, columns = resize.resize_matrix(9, 12), resize.resize_matrix(11, 7)
  expected = np.einsum('yh,bhwc,xw->byxc', rows, image, columns)
  np.testing.assert_allclose(out, expected, atol=1e-14)


def test_bfloat16_images_are_resized_in_float32():
  image = jnp.asarray(np.random.RandomState(0).standard_normal((1, 9, 9, 3)), jnp.bfloat16)
  out = resize.resize(image, (6, 6))
  expected = resize.resize(image.astype(jnp.float32), (6, 6)).astype(jnp.bfloat16)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out, expected)


def test_unknown_methods_are_refused():
  with pytest.raises(ValueError, match="unknown resize method 'lanczos'; known are"):
    resize.resize_matrix(3, 4, 'lanczos')


def test_center_crop_rounds_odd_margins_as_timm_does():
  image = jnp.arange(11.0)[None, :, None, None] + jnp.zeros((1, 11, 11, 1))
  assert resize.center_crop(image, (8, 8))[0, 0, 0, 0] == 2  # round(1.5)
  assert resize.center_crop(image, (10, 10))[0, 0, 0, 0] == 0  # round(0.5)
  with pytest.raises(ValueError, match=r'cannot crop \(12, 8\) out of an image of 11 x 11'):
    resize.center_crop(image, (12, 8))


def test_position_embeddings_keep_the_class_token_and_resize_the_grid():
  embedding = jnp.asarray(np.random.RandomState(0).standard_normal((1, 16, 8)), jnp.float32)
  out = resize.resize_position_embedding(embedding, (3, 5), (4, 7))
  assert out.shape == (1, 29, 8)
  np.testing.assert_array_equal(out[:, 0], embedding[:, 0])
  patches = resize.resize(embedding[:, 1:].reshape(1, 3, 5, 8), (4, 7))
  np.testing.assert_array_equal(out[:, 1:].reshape(patches.shape), patches)


def test_position_embeddings_of_another_grid_are_refused():
  with pytest.raises(ValueError, match=r'18 position embeddings do not cover .* \(4, 4\) = 16'):
    resize.resize_position_embedding(jnp.zeros((1, 18, 8)), (4, 4), (5, 5))


def test_aligned_corners_keep_the_first_and_the_last_sample():
  expected = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
  np.testing.assert_allclose(resize.resize_matrix(3, 5, 'bilinear', True), expected, atol=1e-15)
  np.testing.assert_allclose(resize.resize_matrix(3, 1, 'bilinear', True), [[1, 0, 0]])


def test_nearest_samples_span_the_range_and_ties_go_up():
  np.testing.assert_array_equal(resize.nearest_corner_aligned(769, 97), np.arange(97) * 8)
  np.testing.assert_array_equal(resize.nearest_corner_aligned(4, 3), [0, 2, 3])
  np.testing.assert_array_equal(resize.nearest_corner_aligned(5, 1), [0])


@pytest.mark.parametrize('size', [(6, 4), (5, 7)])
def test_nearest_upsampling_repeats_rows_and_columns(size):
  x = np.arange(6.0).reshape(3, 2, 1)
  expected = x[np.arange(size[0]) * 3 // size[0]][:, np.arange(size[1]) * 2 // size[1]]
  np.testing.assert_array_equal(resize.upsample_nearest(jnp.asarray(x), size), expected)


@pytest.mark.parametrize('factor', [0.125, 0.25, 1.5])
def test_zooming_misses_the_pixels_that_scipy_misses(factor):
  missed = 0
  for length in range(20, 80):
    expected = ndimage.zoom(np.ones((length, 2 * length)), factor, order=1) > 0.5
    size = tuple(round(n * factor) for n in (length, 2 * length))
    found = resize.reached_by_zoom((length, 2 * length), size)
    np.testing.assert_array_equal(found, expected)
    missed += not found.all()
  assert missed
