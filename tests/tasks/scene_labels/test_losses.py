"""Losses of scenes, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.tasks.scene_labels import losses


def test_cross_entropy_of_probabilities_and_its_gradient_are_finite_everywhere():
  probabilities, targets = jnp.array([0.0, 1.0, 0.0, 0.25]), jnp.array([1.0, 0.0, 0.0, 1.0])
  values = losses.binary_cross_entropy(probabilities, targets)
  np.testing.assert_allclose(values, [100, 100, 0, np.log(4)], rtol=1e-6)
  gradients = jax.grad(lambda p: losses.binary_cross_entropy(p, targets).sum())(probabilities)
  np.testing.assert_allclose(gradients, [-1e12, 1e12, 0, -4], rtol=1e-6)
  half = losses.binary_cross_entropy(jnp.array([0.25], jnp.bfloat16), jnp.array([1]))
  assert half.dtype == jnp.float32
  assert half[0] == pytest.approx(np.log(4))


def test_each_scene_pays_for_the_outputs_that_a_model_has():
  tags = jnp.array([[1.0, 0.0], [0.0, 0.0]])
  outputs = {
    'view_cam_logits': jnp.array([[0.0, 0.0], [0.0, jnp.log(3.0)]]),
    'voxel_cam_probabilities': jnp.array([[0.5, 0.5], [0.25, 0.0]]),
    'token_similarity': jnp.array([1.0, 2.0]),
    'cams': jnp.zeros((2, 7, 2)),
  }
  parts = losses.scene_losses(outputs, tags)
  assert {*parts} == {'view_cam', 'voxel_cam', 'token_similarity'}
  np.testing.assert_allclose(parts['view_cam'], [np.log(2), np.log(8) / 2], rtol=1e-6)
  np.testing.assert_allclose(parts['voxel_cam'], [np.log(2), np.log(4 / 3) / 2], rtol=1e-6)
  total = losses.total(parts, {'view_cam': 1, 'voxel_cam': 0, 'token_similarity': 2, 'other': 5})
  np.testing.assert_allclose(total, [np.log(2) + 2, np.log(8) / 2 + 4], rtol=1e-6)
