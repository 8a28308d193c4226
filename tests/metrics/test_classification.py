"""Hits are counted as a sort by hand counts them."""

import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.metrics import classification


@pytest.mark.parametrize('k', [1, 3, 5, 9])
def test_in_top_k_is_the_rank_in_a_stable_sort(k):
  rng = np.random.default_rng(k)
  # Few distinct values, so that there are ties.
  logits = rng.integers(0, 4, (200, 7)).astype(np.float32)
  labels = rng.integers(0, 7, 200)
  best = np.argsort(-logits, axis=-1, kind='stable')[:, :k]
  expected = (best == labels[:, None]).any(axis=-1)
  np.testing.assert_array_equal(classification.in_top_k(logits, labels, k), expected)


def test_a_nan_is_never_a_hit():
  logits = jnp.array([[jnp.nan, 1.0], [2.0, 1.0]])
  labels = jnp.array([0, 0])
  np.testing.assert_array_equal(classification.in_top_k(logits, labels, 1), [False, True])


def test_a_label_that_is_no_class_is_never_a_hit():
  logits = jnp.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
  for k in (1, 2):
    hits = classification.in_top_k(logits, jnp.array([-1, 2, 1]), k)
    np.testing.assert_array_equal(hits, [False, False, True])
