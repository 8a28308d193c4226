import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.attention import random_features


def test_attention_equals_the_explicit_matrix_of_feature_products():
  rng = np.random.RandomState(0)
  query, key = rng.standard_normal((2, 2, 9, 6))
  value, directions = rng.standard_normal((2, 9, 5)), rng.standard_normal((4, 6))

  def features(x):
    return np.exp(x @ directions.T - 0.5 * (x**2).sum(-1, keepdims=True)) / 2  # sqrt(4)

  products = features(query) @ features(key).swapaxes(-1, -2)
  expected = products @ value / (products.sum(-1, keepdims=True) + 1e-8)
  with jax.enable_x64(True):
    out = random_features.random_feature_attention(
      *(jnp.asarray(x) for x in (query, key, value, directions))
    )
  np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_feature_products_estimate_the_exponential():
  rng = np.random.RandomState(0)
  x, y = 0.25 * rng.standard_normal((2, 8))
  directions = rng.standard_normal((400000, 8))
  with jax.enable_x64(True):
    phi_x, phi_y = (
      random_features.positive_random_features(jnp.asarray(z), jnp.asarray(directions))
      for z in (x, y)
    )
  np.testing.assert_allclose(np.dot(phi_x, phi_y), np.exp(x @ y), rtol=0.02)


def test_low_precision_is_computed_in_float32():
  rng = np.random.RandomState(0)
  query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in rng.standard_normal((3, 1, 9, 6)))
  directions = jnp.asarray(rng.standard_normal((3, 6)), jnp.float32)
  out = random_features.random_feature_attention(query, key, value, directions)
  exact = random_features.random_feature_attention(
    *(x.astype(jnp.float32) for x in (query, key, value)), directions
  )
  assert out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))
