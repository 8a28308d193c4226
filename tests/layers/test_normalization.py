import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.layers import normalization


def test_vectors_get_length_one_and_keep_their_direction():
  x = np.random.default_rng(0).standard_normal((3, 5))
  with jax.enable_x64(True):
    unit = normalization.l2_normalize(jnp.asarray(x))
    np.testing.assert_allclose(unit, x / np.linalg.norm(x, axis=-1, keepdims=True), rtol=1e-12)


def test_vectors_shorter_than_epsilon_are_divided_by_it():
  np.testing.assert_allclose(
    normalization.l2_normalize(jnp.array([3e-3, 4e-3]), epsilon=0.1), [0.03, 0.04], rtol=1e-6
  )


def test_zeros_stay_zeros_and_have_a_finite_gradient():
  zeros = jnp.zeros((2, 4))
  assert not np.any(normalization.l2_normalize(zeros))
  assert np.all(np.isfinite(jax.jacobian(normalization.l2_normalize)(zeros)))


def test_the_result_is_in_at_least_float32():
  assert normalization.l2_normalize(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32
