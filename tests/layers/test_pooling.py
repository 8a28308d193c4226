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
