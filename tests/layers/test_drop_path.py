import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.layers import drop_path


def test_drops_whole_samples_and_scales_the_kept_ones():
  x = jnp.ones((4000, 2, 3))
  out = drop_path.DropPath(0.2).apply({}, x, True, rngs={'drop_path': jax.random.key(0)})
  per_sample = np.asarray(out).reshape(4000, -1)
  assert np.all(per_sample == per_sample[:, :1])
  np.testing.assert_allclose(np.unique(per_sample), [0, 1.25])
  np.testing.assert_allclose(np.mean(per_sample[:, 0] == 0), 0.2, atol=0.02)


def test_is_the_identity_at_rate_zero_and_in_evaluation():
  x = jnp.arange(6.0).reshape(2, 3)
  np.testing.assert_array_equal(drop_path.DropPath(0.0).apply({}, x, True), x)
  np.testing.assert_array_equal(drop_path.DropPath(0.9).apply({}, x), x)


def test_keeps_bfloat16():
  x = jnp.ones((4, 3), jnp.bfloat16)
  out = drop_path.DropPath(0.5).apply({}, x, True, rngs={'drop_path': jax.random.key(0)})
  assert out.dtype == jnp.bfloat16


def test_rates_grow_linearly_over_all_stages():
  first, none, last = drop_path.growing_rates(0.5, (2, 0, 4))
  assert none == ()
  np.testing.assert_allclose(first + last, [0, 0.1, 0.2, 0.3, 0.4, 0.5])
