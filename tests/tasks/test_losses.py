"""Losses have their closed forms; tests/parity replays the recorded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.tasks import losses

LOGITS = np.random.default_rng(0).standard_normal((5, 7)) * 4
LABELS = np.array([0, 3, 6, 2, 2])


def _log_softmax(x):
  return (
    x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1))[:, None]
  )


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_label_smoothing_is_cross_entropy_against_smoothed_targets(smoothing):
  targets = np.full((5, 7), smoothing / 7)
  targets[np.arange(5), LABELS] += 1 - smoothing
  expected = -(targets * _log_softmax(LOGITS)).sum(-1)
  with jax.enable_x64(True):
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    smoothed = losses.label_smoothing_cross_entropy(logits, labels, smoothing)
    soft = losses.soft_target_cross_entropy(logits, jnp.asarray(targets))
    np.testing.assert_allclose(smoothed, expected, rtol=1e-13)
    np.testing.assert_allclose(soft, expected, rtol=1e-13)


def test_cross_entropy_of_bfloat16_logits_is_float32_and_finite_for_large_ones():
  logits = jnp.array([[300.0, -300.0], [-300.0, 300.0]], jnp.bfloat16)
  loss = losses.cross_entropy(logits, jnp.array([0, 0]))
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, [0, 600])


def test_distillation_is_zero_from_a_teacher_of_the_same_opinion():
  logits = jnp.asarray(np.random.RandomState(0).standard_normal((3, 5)), jnp.float32)
  # Adding a constant changes no opinion.
  soft = losses.soft_distillation_loss(logits, logits + 2, 3.0)
  np.testing.assert_allclose(soft, 0, atol=1e-6)
  other = losses.soft_distillation_loss(logits, -logits, 3.0)
  assert np.all(other > 1e-3)


def test_hard_distillation_is_the_loss_of_the_teacher_s_decision():
  logits, teacher = jnp.asarray(np.random.RandomState(1).standard_normal((2, 4, 5)), jnp.float32)
  expected = losses.cross_entropy(logits, np.argmax(teacher, axis=-1))
  np.testing.assert_allclose(losses.hard_distillation_loss(logits, teacher), expected)
