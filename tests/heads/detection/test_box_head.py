"""The box head: sizes, the originals' initial values, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.heads.detection import box_head


def test_initial_values_are_the_originals():
  head = box_head.BoxHead(num_classes=5, channels=64)
  params = jax.jit(head.init)(jax.random.key(0), jnp.zeros((2, 7, 7, 16)))['params']
  assert params['fc1']['kernel'].shape == (7, 7, 16, 64)
  assert params['regressor']['kernel'].shape == (64, 5, 4)
  bound = np.sqrt(6 / (7 * 7 * 16 + 64))
  assert np.abs(params['fc1']['kernel']).max() == pytest.approx(bound, rel=1e-3)
  assert np.std(params['classifier']['kernel']) == pytest.approx(0.01, rel=0.1)
  assert np.std(params['regressor']['kernel']) == pytest.approx(0.001, rel=0.1)
  assert all(np.all(layer['bias'] == 0) for layer in params.values())


def test_regions_of_a_batch_are_looked_at_one_by_one_in_bfloat16_too():
  head = box_head.BoxHead(num_classes=5, channels=64, dtype=jnp.bfloat16)
  x = jax.random.normal(jax.random.key(1), (2, 3, 7, 7, 16))
  variables = jax.jit(head.init)(jax.random.key(0), x)
  apply = jax.jit(head.apply)
  logits, deltas = apply(variables, x)
  assert (logits.shape, deltas.shape) == ((2, 3, 6), (2, 3, 5, 4))
  assert logits.dtype == deltas.dtype == jnp.float32
  alone, _ = apply(variables, x[1, 2])
  np.testing.assert_allclose(alone, logits[1, 2], atol=1e-3)
