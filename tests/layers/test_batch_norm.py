from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.layers import batch_norm


def _variables(channels, rng):
  draw = lambda: jnp.asarray(rng.standard_normal(channels), jnp.float32)
  return {
    'params': {'scale': draw(), 'bias': draw()},
    'batch_stats': {'mean': draw(), 'var': jnp.abs(draw())},
  }


def test_training_normalises_by_the_batch_and_remembers_the_unbiased_variance():
  rng = np.random.RandomState(0)
  x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32) * 3 + 1
  variables = _variables(5, rng)
  out, updated = batch_norm.BatchNorm().apply(variables, x, train=True, mutable=['batch_stats'])
  rows = x.reshape(-1, 5).astype(np.float64)
  params, old, new = variables['params'], variables['batch_stats'], updated['batch_stats']
  expected = (x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * params['scale'] + params['bias']
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(new['mean'], 0.9 * old['mean'] + 0.1 * rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(new['var'], 0.9 * old['var'] + 0.1 * rows.var(0, ddof=1), rtol=1e-5)


def test_evaluation_normalises_by_the_running_statistics():
  rng = np.random.RandomState(1)
  x = rng.standard_normal((2, 4, 5)).astype(np.float32)
  variables = _variables(5, rng)
  params, stats = variables['params'], variables['batch_stats']
  expected = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5) * params['scale'] + params['bias']
  np.testing.assert_allclose(
    batch_norm.BatchNorm().apply(variables, x), expected, rtol=1e-4, atol=1e-6
  )


def test_a_large_mean_does_not_cost_the_variance_its_digits():
  x = np.random.RandomState(2).standard_normal((4096, 1)).astype(np.float32)
  module = batch_norm.BatchNorm()
  variables = module.init(jax.random.key(0), x)
  apply = lambda x: module.apply(variables, x, train=True, mutable=['batch_stats'])[0]
  np.testing.assert_allclose(apply(x + 1000), apply(x), atol=2e-3)


def test_bfloat16_keeps_statistics_in_float32():
  x = jnp.asarray(np.random.RandomState(3).standard_normal((64, 3)), jnp.bfloat16)
  module = batch_norm.BatchNorm(dtype=jnp.bfloat16)
  variables = module.init(jax.random.key(0), x)
  out, updated = module.apply(variables, x, train=True, mutable=['batch_stats'])
  assert out.dtype == jnp.bfloat16
  assert updated['batch_stats']['mean'].dtype == jnp.float32
  expected = 0.1 * np.asarray(x, np.float64).mean(0)
  np.testing.assert_allclose(updated['batch_stats']['mean'], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('train', [False, True])
def test_initialising_leaves_the_statistics_at_their_start(train):
  x = jnp.ones((4, 2)) * 7
  stats = batch_norm.BatchNorm().init(jax.random.key(0), x, train=train)['batch_stats']
  np.testing.assert_array_equal(stats['mean'], 0)
  np.testing.assert_array_equal(stats['var'], 1)


def test_an_activated_norm_scales_by_the_magnitude_and_keeps_the_gradient_s_sign():
  x = jnp.asarray(np.random.RandomState(2).standard_normal((6, 3)), jnp.float32)
  norm = batch_norm.BatchNorm(absolute_scale=True)
  scale = jnp.asarray([2.0, -0.5, 0.0])
  variables = {
    'params': {'scale': scale, 'bias': jnp.zeros(3)},
    'batch_stats': {'mean': jnp.zeros(3), 'var': jnp.ones(3)},
  }
  normal = x / np.sqrt(1 + 1e-5)
  expected = normal * (jnp.abs(scale) + 1e-5)
  np.testing.assert_allclose(norm.apply(variables, x), expected, rtol=1e-6)
  gradient = jax.grad(lambda v: norm.apply(v, x).sum())(variables)['params']['scale']
  # Inplace-ABN: as if the scale 0 were positive.
  np.testing.assert_allclose(gradient, normal.sum(0) * np.array([1, -1, 1]), rtol=1e-5)


def test_a_single_value_per_channel_is_refused_in_training_alone():
  class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      x = x.mean((1, 2), keepdims=True)
      return batch_norm.BatchNorm(name='norm')(x, train)

  network, one, two = Network(), jnp.ones((1, 4, 4, 3)), jnp.ones((2, 4, 4, 3))
  variables = network.init(jax.random.key(0), one, True)
  network.apply(variables, one, False)
  network.apply(variables, two, True, mutable=['batch_stats'])
  with pytest.raises(
    ValueError,
    match=r'norm: expected more than 1 value per channel .* \(1, 1, 1, 3\); .*batch_size',
  ):
    network.apply(variables, one, True, mutable=['batch_stats'])


def test_dividing_by_the_deviation_has_no_bias():
  """A bias of 1e-8 in every norm would be one of 1e-5 after sixty of them."""
  rng = np.random.RandomState(0)
  variance = np.abs(1 + 0.2 * rng.standard_normal(100_000)).astype(np.float32)
  variables = {
    'params': {'scale': jnp.ones(variance.shape), 'bias': jnp.zeros(variance.shape)},
    'batch_stats': {'mean': jnp.zeros(variance.shape), 'var': jnp.asarray(variance)},
  }
  norm = batch_norm.BatchNorm(epsilon=1e-3)
  out = jax.jit(norm.apply)(variables, jnp.ones((1, *variance.shape)))
  exact = 1 / np.sqrt((variance + np.float32(1e-3)).astype(np.float64))
  errors = np.asarray(out[0], np.float64) / exact - 1
  assert abs(errors.mean()) < 1e-9
  assert abs(errors).max() < 1e-7


def test_padding_has_no_part_in_the_statistics():
  rng = np.random.RandomState(5)
  x = rng.standard_normal((2, 6, 3)).astype(np.float32)
  is_valid = np.arange(6) < np.array([[4], [1]])
  variables = _variables(3, rng)
  module = batch_norm.BatchNorm()
  apply = lambda *args: module.apply(variables, *args, mutable=['batch_stats'])
  padded = jnp.where(is_valid[..., None], x, jnp.nan)
  out, updated = apply(padded, True, is_valid)
  expected, expected_updated = apply(x[is_valid], True)
  np.testing.assert_allclose(out[is_valid], expected, rtol=1e-5, atol=1e-6)
  assert jnp.isfinite(out).all()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated, expected_updated)
