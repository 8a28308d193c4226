import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.layers import projection_norm


def test_32_groups_of_channels_are_normed_over_the_whole_map():
  x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
  module = projection_norm.ProjectionNorm(64)
  out, variables = module.init_with_output(jax.random.key(0), jnp.asarray(x))
  linear = variables['params']['linear']
  y = (x @ linear['kernel'] + linear['bias']).reshape(2, 15, 32, 2)
  apart = y - y.mean(axis=(1, 3), keepdims=True)
  expected = apart / np.sqrt((apart**2).mean(axis=(1, 3), keepdims=True) + 1e-5)
  np.testing.assert_allclose(out, expected.reshape(out.shape), atol=1e-4)
  assert linear['bias'].any()


def test_a_kernel_of_one_s_own_comes_without_a_bias_at_first():
  module = projection_norm.ProjectionNorm(32, jax.nn.initializers.ones)
  params = module.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))['params']
  np.testing.assert_array_equal(params['linear']['kernel'], np.ones((3, 32)))
  np.testing.assert_array_equal(params['linear']['bias'], np.zeros(32))
