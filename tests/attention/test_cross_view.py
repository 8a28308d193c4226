import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.attention import cross_view


def test_attention_across_views_sees_both_and_returns_the_first_token_s_weights():
  grids = ((4, 2), (2, 1))
  rng = np.random.RandomState(0)
  x = jnp.asarray(rng.standard_normal((2, 1 + 8 + 2, 4)), np.float32)
  module = cross_view.CrossViewAttention(2, (2, 1))
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, grids))
  variables = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype), shapes
  )
  run = jax.jit(lambda x: module.apply(variables, x, grids))
  out, weights = run(x)
  assert out.shape == x.shape
  # The class token, 2 x 1 places of the first view and 2 x 1 of the second.
  assert weights.shape == (2, 2, 1 + 2 + 2)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
  changed, _ = run(x.at[:, -1].add(1))
  assert np.abs(changed - out)[:, :-1].max() > 1e-4
