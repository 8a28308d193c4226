import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.layers import mlp


def test_is_two_linear_maps_around_gelu():
  x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 5, 6)), jnp.float32)
  module = mlp.Mlp(hidden=24)
  variables = module.init(jax.random.key(0), x)
  params = variables['params']
  hidden = jax.nn.gelu(x @ params['fc1']['kernel'], approximate=False)
  np.testing.assert_allclose(
    module.apply(variables, x), hidden @ params['fc2']['kernel'], atol=1e-7
  )
  assert params['fc1']['kernel'].shape == (6, 24)
  assert params['fc2']['kernel'].shape == (24, 6)


def test_linear_maps_start_at_a_fiftieth():
  params = mlp.Mlp(hidden=512).init(jax.random.key(0), jnp.zeros((1, 256)))['params']
  np.testing.assert_allclose(np.std(params['fc1']['kernel']), 0.02, rtol=0.02)
  assert not np.any(params['fc1']['bias'])
