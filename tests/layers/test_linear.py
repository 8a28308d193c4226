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
def test_linear_layers_compute_the_same_with_it(features, axis):
  plain = nn.DenseGeneral(features, axis=axis)
  flat = plain.clone(dot_general=linear.dot_general)
  variables = plain.init(jax.random.key(1), X)
  loss = lambda layer: jax.value_and_grad(lambda v, x: jnp.sum(layer.apply(v, x) ** 2), (0, 1))
  for a, b in zip(
    jax.tree.leaves(loss(plain)(variables, X)),
    jax.tree.leaves(loss(flat)(variables, X)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_rows_are_one_axis_except_under_a_mesh():
  kernel = jnp.ones((5, 6))
  product = lambda x: linear.dot_general(x, kernel, (((3,), (0,)), ((), ())))
  assert 'f32[24,6] = dot_general' in str(jax.make_jaxpr(product)(X))
  with jax.set_mesh(parallel.create_mesh()):
    assert 'f32[2,3,4,6] = dot_general' in str(jax.make_jaxpr(product)(X))
