import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.layers import similarity


def test_vectors_get_length_one_and_keep_their_direction():
  x = np.random.default_rng(0).standard_normal((3, 5))
  with jax.enable_x64(True):
    unit = similarity.l2_normalize(jnp.asarray(x))
    np.testing.assert_allclose(unit, x / np.linalg.norm(x, axis=-1, keepdims=True), rtol=1e-12)


def test_vectors_shorter_than_epsilon_are_divided_by_it():
  np.testing.assert_allclose(
    similarity.l2_normalize(jnp.array([3e-3, 4e-3]), epsilon=0.1), [0.03, 0.04], rtol=1e-6
  )


def test_zeros_stay_zeros_and_have_a_finite_gradient():
  zeros = jnp.zeros((2, 4))
  assert not np.any(similarity.l2_normalize(zeros))
  assert np.all(np.isfinite(jax.jacobian(similarity.l2_normalize)(zeros)))


def test_the_result_is_in_at_least_float32():
  assert similarity.l2_normalize(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32


def test_products_are_as_exact_as_their_dtype_everywhere():
  a, b = (np.random.default_rng(i).standard_normal((3 + i, 5)).astype(np.float32) for i in (0, 1))
  np.testing.assert_allclose(similarity.dot_products(a, b), a @ b.T, rtol=1e-5)
  (product,) = jax.make_jaxpr(similarity.dot_products)(a, b).eqns
  assert set(product.params['precision']) == {jax.lax.Precision.HIGHEST}
