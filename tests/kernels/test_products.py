import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import parallel
from crossattn_jax.kernels import products

X = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))


def test_rows_are_one_axis_except_under_a_mesh():
  x = X.reshape(2, 3, 2, 2, 5)
  kernel = jnp.ones((2, 5, 6))
  product = lambda x: products.contract(x, kernel, (-2, -1))
  assert 'f32[12,6] = dot_general' in str(jax.make_jaxpr(product)(x))
  with jax.set_mesh(parallel.create_mesh()):
    jaxpr = str(jax.make_jaxpr(product)(x))
  assert 'f32[2,3,2,6] = dot_general' in jaxpr
  assert '[2,3,2,10] = reshape' in jaxpr


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_projection_for_a_kernel_has_the_gradients_of_a_linear_map(dtype):
  kernel, bias = jax.random.normal(jax.random.key(1), (5, 6)), jnp.arange(6.0)
  arguments = [a.astype(dtype) for a in (X, kernel, bias)]
  plain = lambda x, kernel, bias: x @ kernel + bias
  gradients = lambda f: jax.tree.leaves(
    jax.value_and_grad(lambda *a: jnp.sum(f(*a).astype(jnp.float32) ** 2), (0, 1, 2))(*arguments)
  )
  exact = [a.astype(jnp.float32) for a in arguments]
  expected = jax.grad(lambda *a: jnp.sum(plain(*a) ** 2), (0, 1, 2))(*exact)
  _, *got = gradients(products.project_for_kernel)
  for a, b in zip(expected, got, strict=True):
    assert b.dtype == dtype
    np.testing.assert_allclose(
      a, b.astype(jnp.float32), rtol=0, atol=(2e-6 if dtype == jnp.float32 else 1e-2) * abs(a).max()
    )
