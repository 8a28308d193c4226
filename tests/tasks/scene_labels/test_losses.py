"""Losses of scenes, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.tasks.scene_labels import losses


def test_cross_entropy_of_probabilities_and_its_gradient_are_finite_everywhere():
  probabilities = jnp.array([0.0, 1.0, 0.0, 0.25])
  targets = np.array([1.0, 0.0, 0.0, 1.0], np.float32)

  @jax.jit
  def values_and_gradients(probabilities):
    values, pull = jax.vjp(lambda p: losses.binary_cross_entropy(p, targets), probabilities)
    return values, *pull(jnp.ones_like(values))

  values, gradients = values_and_gradients(probabilities)
  np.testing.assert_allclose(values, [100, 100, 0, np.log(4)], rtol=1e-6)
  np.testing.assert_allclose(gradients, [-1e12, 1e12, 0, -4], rtol=1e-6)
  half, gradients = values_and_gradients(probabilities.astype(jnp.bfloat16))
  assert (half.dtype, gradients.dtype) == (jnp.float32, jnp.bfloat16)
  np.testing.assert_allclose(half, values, rtol=1e-6)


def test_each_scene_pays_for_the_outputs_that_a_model_has():
  tags = np.array([[1.0, 0.0], [0.0, 0.0]])
  outputs = {
    'view_cam_logits': np.array([[0.0, 0.0], [0.0, np.log(3.0)]]),
    'voxel_cam_probabilities': np.array([[0.5, 0.5], [0.25, 0.0]]),
    'token_similarity': np.array([1.0, 2.0]),
    'cams': np.zeros((2, 7, 2)),
  }
  weights = {'view_cam': 1, 'voxel_cam': 0, 'token_similarity': 2, 'other': 5}

  @jax.jit
  def compute(outputs):
    parts = losses.scene_losses(outputs, tags)
    return parts, losses.total(parts, weights)

  parts, total = compute(outputs)
  assert {*parts} == {'view_cam', 'voxel_cam', 'token_similarity'}
  np.testing.assert_allclose(parts['view_cam'], [np.log(2), np.log(8) / 2], rtol=1e-6)
  np.testing.assert_allclose(parts['voxel_cam'], [np.log(2), np.log(4 / 3) / 2], rtol=1e-6)
  np.testing.assert_allclose(total, [np.log(2) + 2, np.log(8) / 2 + 4], rtol=1e-6)
