"""Efficient additive attention against its definition; recorded cases are in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import efficient_additive


def _normal(*shape, seed=0, dtype=np.float64):
  return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), dtype)


def _unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


WEIGHTS = {
  'l2': lambda scores: scores / np.sqrt(np.sum(scores**2)),
  'ones': np.ones_like,
  'softmax': lambda scores: np.exp(scores) / np.sum(np.exp(scores)),
  'raw': lambda scores: scores,
}


@pytest.mark.parametrize('normalization', efficient_additive.NORMALIZATIONS)
def test_one_query_for_all_multiplies_each_key(normalization):
  with jax.enable_x64(True):
    query, key, vector = _normal(2, 5, 3), _normal(2, 5, 3, seed=1), _normal(3, seed=2)
    result = jax.jit(
      lambda *args: efficient_additive.efficient_additive_attention(
        *args, scale=0.7, normalization=normalization
      )
    )(query, key, vector)
    for row in range(2):
      unit = _unit(np.asarray(query[row]))
      weights = WEIGHTS[normalization](0.7 * unit @ np.asarray(vector))
      np.testing.assert_allclose(result.weights[row], weights, atol=1e-14)
      context = (weights @ unit) * _unit(np.asarray(key[row]))
      np.testing.assert_allclose(result.context[row], context, atol=1e-14)
      np.testing.assert_allclose(result.query[row], unit, atol=1e-14)


def test_zeros_stay_zeros_and_have_finite_gradients():
  zeros, vector = jnp.zeros((1, 4, 3)), jnp.ones(3)

  def run(query, key, vector):
    result = efficient_additive.efficient_additive_attention(query, key, vector)
    return result.context.sum() + result.query.sum(), result

  gradients, result = jax.grad(run, argnums=(0, 1, 2), has_aux=True)(zeros, zeros, vector)
  for leaf in (*result, gradients[2]):
    np.testing.assert_array_equal(leaf, np.zeros_like(leaf))
  assert all(np.isfinite(leaf).all() for leaf in gradients)


def test_a_map_is_its_tokens_row_by_row_and_any_size_will_do():
  module = efficient_additive.EfficientAdditiveAttention()
  x = _normal(2, 3, 5, 8, dtype=np.float32)
  variables = jax.jit(module.init)(jax.random.key(0), x)
  apply = jax.jit(lambda x: module.apply(variables, x, with_weights=True))
  out, weights = apply(x)
  tokens_out, tokens_weights = apply(x.reshape(2, 15, 8))
  np.testing.assert_array_equal(out.reshape(2, 15, 8), tokens_out)
  np.testing.assert_array_equal(weights.reshape(2, 15), tokens_weights)
  assert weights.shape == (2, 3, 5)
  np.testing.assert_allclose(np.sum(weights**2, axis=(1, 2)), 1, rtol=1e-5)
  assert jax.eval_shape(apply, x[:, :1, :1])[0].shape == (2, 1, 1, 8)


def test_half_precision_keeps_norms_and_sums_in_float32():
  query = _normal(1, 4096, 4, dtype=np.float32)
  exact = efficient_additive.efficient_additive_attention(query, query, jnp.ones(4))
  half = efficient_additive.efficient_additive_attention(
    *[query.astype(jnp.bfloat16)] * 2, jnp.ones(4, jnp.bfloat16)
  )
  assert half.weights.dtype == half.context.dtype == jnp.float32
  np.testing.assert_allclose(half.weights, exact.weights, atol=2e-2 * exact.weights.max())


def test_an_unknown_normalization_is_refused():
  module = efficient_additive.EfficientAdditiveAttention(normalization='l1')
  with pytest.raises(ValueError, match=r"normalization='l1' is not one of l2, ones, softmax, raw"):
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2, 3)))
