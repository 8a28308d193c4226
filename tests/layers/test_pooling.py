import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.layers import pooling

MAP = np.random.RandomState(0).standard_normal((2, 7, 10, 3))


@pytest.mark.parametrize('size', [(1, 1), (2, 2), (3, 3), (6, 6), (7, 10), (9, 4)])
def test_adaptive_bins_overlap_as_torch_s_do(size):
  expected = np.empty((2, *size, 3))
  for i in range(size[0]):
    for j in range(size[1]):
      rows = slice(i * 7 // size[0], -(-(i + 1) * 7 // size[0]))
      columns = slice(j * 10 // size[1], -(-(j + 1) * 10 // size[1]))
      expected[:, i, j] = MAP[:, rows, columns].mean((1, 2))
  np.testing.assert_allclose(
    pooling.adaptive_average_pool(jnp.asarray(MAP, jnp.float32), size), expected, atol=1e-6
  )


@pytest.mark.parametrize(
  ('length', 'ceil_mode', 'expected'),
  # A window that starts in the padding at the end does not count: 2 -> 2, not 3.
  [
    (385, True, 193),
    (384, True, 193),
    (384, False, 192),
    (20, True, 11),
    (2, True, 2),
    (1, True, 1),
  ],
)
def test_a_last_partial_window_counts_in_ceil_mode(length, ceil_mode, expected):
  x = jnp.arange(1.0, length + 1).reshape(1, length, 1, 1)
  out = pooling.max_pool(x, 3, 2, padding=1, ceil_mode=ceil_mode)
  assert out.shape == (1, expected, 1, 1)
  ends = np.minimum(2 * np.arange(expected) + 2, length)
  np.testing.assert_array_equal(out[0, :, 0, 0], ends)


def test_padding_is_never_the_maximum():
  x = jnp.full((1, 4, 4, 1), -5.0)
  assert (pooling.max_pool(x, 3, 2, padding=1, ceil_mode=True) == -5).all()


@pytest.mark.parametrize('size', [(1, 1), (3, 4), (4, 3), (7, 10)])
def test_equal_windows_begin_a_stride_apart_and_end_with_the_map(size):
  (side_y, step_y), (side_x, step_x) = (
    pooling.equal_windows(*axis) for axis in zip((7, 10), size, strict=True)
  )
  assert (size[0] - 1) * step_y + side_y == 7
  assert (size[1] - 1) * step_x + side_x == 10
  windows = np.empty((2, *size, 3, side_y * side_x))
  for i, j in np.ndindex(*size):
    window = MAP[:, i * step_y : i * step_y + side_y, j * step_x : j * step_x + side_x]
    windows[:, i, j] = np.moveaxis(window, -1, 1).reshape(2, 3, -1)
  x = jnp.asarray(MAP, jnp.float32)
  average = pooling.equal_window_average_pool(x, size)
  np.testing.assert_allclose(average, windows.mean(-1), atol=1e-6)
  maximum = pooling.equal_window_max_pool(x, size)
  np.testing.assert_allclose(maximum, windows.max(-1), atol=1e-6)


def test_windows_of_the_paper_s_grids():
  # 544 x 672 pixels at stride 8 on 20 x 20 tokens, and 640 at stride 16 on 16.
  assert pooling.equal_windows(68, 20) == (11, 3)
  assert pooling.equal_windows(84, 20) == (8, 4)
  assert pooling.equal_windows(40, 16) == (10, 2)
  with pytest.raises(ValueError, match='3 pixels are too few for 4 windows'):
    pooling.equal_windows(3, 4)
