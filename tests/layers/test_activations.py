import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.layers import activations


def test_gelu_is_x_times_the_normal_distribution():
  x = np.linspace(-9, 9, 401)
  expected = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x]
  with jax.enable_x64(True):
    np.testing.assert_allclose(activations.gelu(jnp.asarray(x)), expected, atol=1e-15)
  np.testing.assert_allclose(activations.gelu(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


def test_gelu_gradient_is_exact():
  x = np.linspace(-6, 6, 101)
  density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
  expected = [0.5 * math.erfc(-v / math.sqrt(2)) for v in x] + x * density
  with jax.enable_x64(True):
    actual = jax.vmap(jax.grad(activations.gelu))(jnp.asarray(x))
  np.testing.assert_allclose(actual, expected, atol=1e-15)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_gelu_keeps_the_dtype(dtype):
  assert activations.gelu(jnp.ones((3,), dtype)).dtype == dtype
