import jax.numpy as jnp
import numpy as np

from crossattn_jax.models.parts import classifier


def test_the_evidence_of_all_positions_makes_the_largest_logit():
  rng = np.random.default_rng(0)
  x, kernel = rng.standard_normal((3, 2, 4, 5)), rng.standard_normal((5, 7))
  logits = np.asarray(classifier.global_mean(x)) @ kernel
  evidence = classifier.evidence(jnp.asarray(x), jnp.asarray(logits), jnp.asarray(kernel))
  assert evidence.shape == (3, 2, 4)
  np.testing.assert_allclose(evidence.mean(axis=(1, 2)), logits.max(axis=-1), rtol=1e-5)


def test_the_strongest_place_is_the_middle_of_its_position():
  evidence = jnp.zeros((2, 2, 4)).at[0, 1, 0].set(1).at[1, 0, 3].set(1)
  rows, columns = classifier.strongest_place(evidence)
  np.testing.assert_allclose(rows, [0.75, 0.25])
  np.testing.assert_allclose(columns, [0.125, 0.875])
  np.testing.assert_array_equal(classifier.looking_place({'evidence': evidence}), (rows, columns))


def test_a_place_that_is_given_looks_whatever_the_evidence():
  features = {'evidence': jnp.zeros((2, 2, 4)), 'place': jnp.array([[0.1, 0.2], [0.3, 0.4]])}
  looks = classifier.looking_place(features)
  np.testing.assert_array_equal(looks, np.array([[0.1, 0.3], [0.2, 0.4]], np.float32))


def test_the_mean_of_a_map_is_not_rounded_to_half_precision():
  x = jnp.asarray([256.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1)
  mean = classifier.global_mean(x)
  assert mean.dtype == jnp.float32
  np.testing.assert_array_equal(mean, 128.5)
