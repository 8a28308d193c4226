import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.models.crossvit import encoder, options


def test_rematerialisation_changes_no_gradient():
  stored, recomputed = (
    encoder.Branch(2, 2, (0.5,), options.BlockOptions(drop_rate=0.1, remat=remat))
    for remat in (False, True)
  )
  x = jax.random.normal(jax.random.key(0), (3, 5, 8))
  variables = jax.tree.map(
    lambda leaf: 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
    jax.eval_shape(stored.init, jax.random.key(0), x),
  )

  def gradient(module):
    rngs = {'dropout': jax.random.key(1), 'drop_path': jax.random.key(2)}
    loss = lambda v: jnp.sum(jnp.sin(module.apply(v, x, True, rngs=rngs)))
    return jax.jit(jax.grad(loss))(variables)

  assert 'remat' in str(jax.make_jaxpr(recomputed.apply)(variables, x))
  for a, b in zip(
    jax.tree.leaves(gradient(stored)),
    jax.tree.leaves(gradient(recomputed)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_drop_path_rates_of_crossvit_15():
  rates = encoder.drop_path_rates(((1, 5, 0),) * 3, 0.1)
  first = [0, 0.00714, 0.01429, 0.02143, 0.02857]
  np.testing.assert_allclose(rates[0], first, atol=1e-5)
  assert [len(r) for r in rates] == [5, 5, 5]
  assert rates[-1][-1] == 0.1


def test_drop_path_rates_count_the_deepest_branch_and_the_cross_attention():
  rates = encoder.drop_path_rates(((3, 1, 2), (1, 2, 0)), 0.6)
  np.testing.assert_allclose(rates[0], [0, 0.1, 0.2, 0.3, 0.4])
  np.testing.assert_allclose(rates[1], [0.5, 0.6])
