import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.kernels import pooling


@pytest.mark.parametrize('size', [(4, 6), (5, 3)], ids=str)
@pytest.mark.parametrize(
  ('side', 'margins'),
  [
    (3, ((1, 0), (1, 0))),
    (3, ((1, 2), (1, 2))),
    (3, ((1, 1), (1, 1))),
    (2, ((0, 0), (0, 0))),
    (2, ((0, 1), (0, 1))),
    ((3, 1), ((0, 0), (0, 0))),
    ((1, 2), ((1, 0), (0, 1))),
  ],
  ids=str,
)
def test_both_forms_of_the_maximum_and_their_gradients_are_the_same(size, side, margins):
  rng = np.random.RandomState(0)
  side = (side, side) if isinstance(side, int) else side
  stride = (2, 1)
  with jax.enable_x64(True):
    x = jnp.asarray(rng.standard_normal((2, *size, 3)))
    out, vjp = jax.vjp(lambda x: pooling.shifted(x, side, stride, margins), x)
    expected, expected_vjp = jax.vjp(lambda x: pooling.reference(x, side, stride, margins), x)
    cotangent = jnp.asarray(rng.standard_normal(out.shape))
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_allclose(vjp(cotangent)[0], expected_vjp(cotangent)[0], atol=1e-14)


def test_the_first_of_equal_maxima_gets_the_gradient():
  x = jnp.asarray(np.random.RandomState(0).randint(3, size=(2, 9, 8, 3)), jnp.float32)
  cotangents = []
  for form in (pooling.shifted, pooling.reference):
    out, vjp = jax.vjp(lambda x, form=form: form(x, (3, 5), (2, 3), ((1, 1), (2, 0))), x)
    weights = jnp.arange(out.size, dtype=out.dtype).reshape(out.shape)
    cotangents.append(vjp(weights)[0])
  np.testing.assert_array_equal(*cotangents)


def test_a_window_with_a_number_that_is_none_has_none():
  x = jnp.ones((1, 4, 4, 1)).at[0, 2, 2].set(jnp.nan)
  out, _ = jax.vjp(lambda x: pooling.shifted(x, (2, 2), (2, 2), ((0, 0), (0, 0))), x)
  np.testing.assert_array_equal(jnp.isnan(out[0, :, :, 0]), [[False, False], [False, True]])


def test_the_form_is_that_of_the_platform():
  pool = jax.jit(lambda x: pooling.max_pool(x, 3, 2, ((1, 1), (1, 1))))
  x = jnp.zeros((1, 5, 5, 2))
  assert 'reduce_window' not in pool.lower(x).as_text()
  assert 'reduce_window' in jax.export.export(pool, platforms=['tpu'])(x).mlir_module()
