"""The mask head: upsampling by its definition, sizes, the originals' initial values, dtypes."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.heads.detection import mask_head


def test_every_pixel_becomes_four():
  x = jax.random.normal(jax.random.key(1), (2, 3, 2, 4))
  upsample = mask_head.Upsample(5, nn.initializers.normal(1.0))
  variables = jax.jit(upsample.init)(jax.random.key(0), x)
  kernel, y = variables['params']['kernel'], upsample.apply(variables, x)
  assert y.shape == (2, 6, 4, 5)
  for row, column in np.ndindex(6, 4):
    expected = x[:, row // 2, column // 2] @ kernel[row % 2, column % 2]
    np.testing.assert_allclose(y[:, row, column], expected, rtol=1e-5, atol=1e-6)


def test_initial_values_are_the_originals():
  head = mask_head.MaskHead(num_classes=5, channels=64)
  params = jax.jit(head.init)(jax.random.key(0), jnp.zeros((2, 4, 4, 16)))['params']
  assert set(params) == {'conv_0', 'conv_1', 'conv_2', 'conv_3', 'upsample', 'classifier'}
  for name, fan_out in {'conv_0': 9 * 64, 'upsample': 4 * 64, 'classifier': 5}.items():
    assert np.std(params[name]['kernel']) == pytest.approx(np.sqrt(2 / fan_out), rel=0.1)
    assert np.all(params[name]['bias'] == 0)


def test_regions_of_a_batch_are_looked_at_one_by_one_in_bfloat16_too():
  head = mask_head.MaskHead(num_classes=5, channels=8, dtype=jnp.bfloat16)
  x = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 8))
  variables = jax.jit(head.init)(jax.random.key(0), x)
  apply = jax.jit(head.apply)
  logits = apply(variables, x)
  assert (logits.shape, logits.dtype) == ((2, 3, 8, 8, 5), jnp.float32)
  np.testing.assert_allclose(apply(variables, x[1, 2:]), logits[1, 2:], atol=0.05)
