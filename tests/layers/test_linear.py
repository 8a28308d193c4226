from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import parallel
from crossattn_jax.layers import linear

X = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))


@pytest.mark.parametrize(
  ('features', 'axis'), [(7, -1), ((3, 2), -1), (6, (-2, -1)), ((2, 2), (-2, -1)), (3, -2)], ids=str
)
@pytest.mark.parametrize('several_devices', [False, True])
def test_a_dense_layer_is_that_of_flax(features, axis, several_devices):
  inits = {'bias_init': nn.initializers.normal(), 'kernel_init': nn.initializers.he_uniform()}
  plain = nn.DenseGeneral(features, axis=axis, **inits)
  layer = linear.Dense(features, axis=axis, **inits)
  variables = plain.init(jax.random.key(1), X)
  jax.tree.map(np.testing.assert_array_equal, variables, layer.init(jax.random.key(1), X))

  def gradients(layer):
    loss = lambda variables, x: jnp.sum(layer.apply(variables, x) ** 2)
    return jax.tree.leaves(jax.value_and_grad(loss, (0, 1))(variables, X))

  expected = gradients(plain)
  devices = jax.devices() if several_devices else jax.devices()[:1]
  with jax.set_mesh(parallel.create_mesh(devices=devices)):
    for a, b in zip(expected, gradients(layer), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_dense_layer_without_bias_and_in_another_dtype():
  layer = linear.Dense(4, use_bias=False, dtype=jnp.bfloat16)
  out, variables = layer.init_with_output(jax.random.key(0), X)
  assert out.dtype == jnp.bfloat16
  assert jax.tree.map(lambda x: (x.shape, x.dtype), variables['params']) == {
    'kernel': ((5, 4), jnp.float32)
  }


@pytest.mark.parametrize('use_bias', [True, False])
def test_projections_are_parts_of_one_dense_layer(use_bias):
  inits = {'bias_init': nn.initializers.normal(), 'use_bias': use_bias}
  projections = linear.Projections(3, 2, 6, **inits)
  parts, variables = projections.init_with_output(jax.random.key(1), X)
  whole, of_dense = linear.Dense((3, 2, 3), **inits).init_with_output(jax.random.key(1), X)
  jax.tree.map(np.testing.assert_array_equal, variables, of_dense)
  for i, part in enumerate(parts):
    np.testing.assert_allclose(linear.split_heads(part, 2), whole[..., i, :, :], atol=1e-6)
  for part, some in zip(parts[1:], projections.apply(variables, X, slice(1, 3)), strict=True):
    np.testing.assert_allclose(part, some, atol=1e-6)


@pytest.mark.parametrize('shape', [(0, 5), (3, 0)])
def test_no_rows_and_no_channels(shape):
  layer = linear.Dense(2, kernel_init=nn.initializers.ones)
  out, _ = layer.init_with_output(jax.random.key(0), jnp.ones(shape))
  np.testing.assert_array_equal(out, np.zeros((shape[0], 2)))
