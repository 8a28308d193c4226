from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.layers import drop_path, stack


class _Block(nn.Module):
  drop_path_rate: float = 0.0

  @nn.compact
  def __call__(self, x, train=False):
    y = nn.Dropout(0.1, deterministic=not train)(nn.Dense(x.shape[-1], name='linear')(jnp.sin(x)))
    return x + drop_path.DropPath(self.drop_path_rate)(y, train)


class _Stack(nn.Module):
  rates: tuple[float, ...]
  scan: bool = False
  remat: bool = False

  @nn.compact
  def __call__(self, x, train=False):
    make_block = lambda i, rate, **where: _Block(rate, **where)
    return stack.apply_blocks(
      self, make_block, self.rates, x, train, scan=self.scan, remat=self.remat
    )


@pytest.mark.parametrize('remat', [False, True])
def test_a_loop_over_blocks_computes_what_the_blocks_compute(remat):
  called = _Stack((0.0, 0.2, 0.4))
  scanned = called.clone(scan=True, remat=remat)
  x = jax.random.normal(jax.random.key(0), (2, 5))
  variables = scanned.init(jax.random.key(1), x)
  assert set(variables['params']) == {'block_0', 'block_1', 'block_2'}
  loss = lambda module: jax.value_and_grad(lambda v: jnp.sum(module.apply(v, x) ** 2))(variables)
  for a, b in zip(jax.tree.leaves(loss(called)), jax.tree.leaves(loss(scanned)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  assert str(jax.make_jaxpr(scanned.apply)(variables, x)).count('sin') == 1


def test_each_block_of_a_loop_draws_its_own_bits_at_its_own_rate():
  module = _Stack((0.0, 0.5, 0.5), scan=True)
  x = jnp.ones((4000, 1))
  variables = jax.tree.map(jnp.zeros_like, module.init(jax.random.key(1), x))
  # Each block adds 1 where it is not dropped.
  variables = jax.tree_util.tree_map_with_path(
    lambda path, leaf: jnp.ones_like(leaf) if 'bias' in str(path) else leaf, variables
  )
  rngs = {'dropout': jax.random.key(2), 'drop_path': jax.random.key(3)}
  kept = module.apply(variables, x, True, rngs=rngs)
  scale = 1 / 0.9  # of the dropout
  counts = [
    np.mean(np.isclose((kept - 1) / scale, total, rtol=1e-4)) for total in (0, 1, 2, 3, 4, 5)
  ]
  # Dropout (rate 0.1) and drop path (rates 0, 0.5 and 0.5, kept ones doubled).
  one = np.array([0.1, 0.9, 0]), np.array([0.55, 0, 0.45])
  expected = np.convolve(np.convolve(one[0], one[1]), one[1])[:6]
  np.testing.assert_allclose(counts, expected, atol=0.03)


@pytest.mark.parametrize(
  ('kinds', 'loop', 'period'),
  [
    ('AACAACAACAACAACAAa', range(15), 3),  # CrossFormer++ at 224: the last is shown
    ('SL' * 8 + 'sl', range(16), 2),
    ('SLCLSC' * 2 + 'SLCLsl', range(12), 6),
    ('FAAAA', range(1, 5), 1),
    ('SL', range(0), 1),
    ('SLXY', range(0), 1),
  ],
)
def test_the_longest_repetition_becomes_the_loop(kinds, loop, period):
  assert stack.find_loop(kinds) == (loop, period)
