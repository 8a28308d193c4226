import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.heads import feature_pyramid

# Of an image of 70 x 98: no map is half of the one before.
SIZES = ((18, 25), (9, 13), (5, 7), (3, 4))
MAPS = [np.random.RandomState(0).standard_normal((2, *size, 8)) for size in SIZES]


def levels_of(maps=MAPS, **fields):
  module = feature_pyramid.FeaturePyramid(4, **fields)
  return jax.jit(lambda maps: module.init_with_output(jax.random.key(0), maps))(maps)


def test_extra_levels_of_a_pyramid_are_every_second_pixel():
  levels, _ = levels_of(extra_levels=1)
  assert len(levels) == 5
  np.testing.assert_array_equal(levels[4], levels[3][:, ::2, ::2])


@pytest.mark.parametrize('extra', ['input', 'lateral', 'output'])
def test_convolved_extra_levels_halve_their_source(extra):
  levels, variables = levels_of(MAPS[1:], extra_levels=2, extra=extra)
  assert [x.shape[1:] for x in levels] == [(9, 13, 4), (5, 7, 4), (3, 4, 4), (2, 2, 4), (1, 1, 4)]
  channels = 8 if extra == 'input' else 4
  assert variables['params']['output_3']['kernel'].shape == (3, 3, channels, 4)
  # The pixel at 0, 0 of a stride 2 is that at 0, 0 of the whole map: the kernel's last rows on it.
  kernel = variables['params']['output_4']['kernel'][1:, 1:]
  corner = jnp.einsum('bhwc,hwco->bo', levels[3][:, :2, :2], kernel)
  np.testing.assert_allclose(levels[4][:, 0, 0], corner, rtol=1e-5, atol=1e-6)


def test_relu_stands_between_extra_levels_only():
  plain, _ = levels_of(extra_levels=2, extra='input')
  rectified, _ = levels_of(extra_levels=2, extra='input', extra_relu=True)
  for x, y in zip(plain[:5], rectified[:5], strict=True):
    np.testing.assert_array_equal(x, y)
  assert (np.abs(plain[5] - rectified[5]) > 1e-3).any()


def test_norms_take_the_place_of_biases():
  _, variables = levels_of(extra_levels=1, extra='output', norm=True)
  assert len(variables['params']) == 9
  for unit in variables['params'].values():
    assert set(unit) == {'conv', 'norm'}
    assert set(unit['conv']) == {'kernel'}
