"""Values against explicit sums in float64; the recorded cases are replayed in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import cross_modal


def _tokens(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def _softmax(scores):
  scores = np.exp(scores - scores.max(-1, keepdims=True))
  return scores / scores.sum(-1, keepdims=True)


def test_each_modality_s_values_are_mixed_by_the_other_s_queries():
  with jax.enable_x64(True):
    rgb, thermal = (
      cross_modal.Projected(*map(jnp.asarray, _tokens(3, 2, 5, 2, 4, seed=seed))) for seed in (0, 1)
    )
    new = cross_modal.dual_cross_attention(rgb, thermal)
    for out, own, other in zip(new, (rgb, thermal), (thermal, rgb), strict=True):
      scores = np.einsum('bnhd,bmhd->bhnm', other.query, own.key) / np.sqrt(4)
      expected = np.einsum('bhnm,bmhd->bnhd', _softmax(scores), own.value)
      np.testing.assert_allclose(out, expected, rtol=1e-12)
      weights = cross_modal.attention_weights(other.query, own.key)
      np.testing.assert_allclose(weights, _softmax(scores).mean(axis=1), rtol=1e-12)


@pytest.fixture
def block():
  """A block, its inputs, and parameters that are not the initial ones."""
  with jax.enable_x64(True):
    module = cross_modal.IterativeCrossModalBlock(num_heads=2, mlp_ratio=2, param_dtype='float64')
    streams = [jnp.asarray(_tokens(2, 5, 8, seed=seed)) for seed in (0, 1)]
    leaves, tree = jax.tree.flatten(jax.eval_shape(module.init, jax.random.key(0), *streams))
    leaves = [1 + _tokens(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)]
    yield module, jax.tree.unflatten(tree, leaves), streams


def test_iterations_share_their_parameters(block):
  module, variables, streams = block
  looped = module.clone(loops=3)
  shapes = jax.eval_shape(looped.init, jax.random.key(0), *streams)['params']
  assert jax.tree.map(jnp.shape, variables['params']) == jax.tree.map(jnp.shape, shapes)
  expected = streams
  for _ in range(3):
    expected = module.apply(variables, *expected)
  out = looped.apply(variables, *streams)
  np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_the_modalities_are_symmetric_but_for_their_parameters(block):
  module, variables, (rgb, thermal) = block
  swapped = {}
  for name, part in variables['params'].items():
    if name == 'attention':
      part = {'rgb': part['thermal'], 'thermal': part['rgb']}
    stem, _, modality = name.rpartition('_')
    other = {'rgb': 'thermal', 'thermal': 'rgb'}.get(modality)
    swapped[f'{stem}_{other}' if other else name] = part
  out = module.apply(variables, rgb, thermal)
  out_swapped = module.apply({'params': swapped}, thermal, rgb)
  np.testing.assert_allclose(out, out_swapped[::-1], rtol=1e-12)


def test_coefficients_weigh_input_and_change(block):
  module, variables, (rgb, thermal) = block
  params = dict(variables['params'])
  for part in ('attention', 'mlp'):
    params[f'{part}_sum_rgb'] = {'kept': jnp.array(2.0), 'added': jnp.array(0.0)}
  out_rgb, _ = module.apply({'params': params}, rgb, thermal)
  np.testing.assert_allclose(out_rgb, 4 * rgb, rtol=1e-12)


def test_attention_starts_by_changing_nothing():
  streams = [jnp.asarray(_tokens(2, 5, 16, seed=seed), jnp.float32) for seed in (0, 1)]
  new, _ = cross_modal.DualCrossAttention(num_heads=2).init_with_output(jax.random.key(0), *streams)
  assert max(float(jnp.abs(x).max()) for x in new) < 1e-4


@pytest.mark.extended
def test_rates_of_dropout_have_an_effect_in_training_only():
  streams = [jnp.asarray(_tokens(1, 4, 8, seed=seed), jnp.float32) for seed in (0, 1)]
  for rates in ((0.5, 0.0), (0.0, 0.5)):
    module = cross_modal.DualCrossAttention(2, *rates, jax.nn.initializers.normal(0.5))
    variables = module.init(jax.random.key(0), *streams)
    rngs = {'dropout': jax.random.key(1)}
    dropped = module.apply(variables, *streams, train=True, rngs=rngs)
    assert not np.allclose(dropped, module.apply(variables, *streams))


def test_wrong_sizes_are_refused():
  init = cross_modal.IterativeCrossModalBlock(3).init
  rgb = jnp.zeros((1, 4, 8))
  with pytest.raises(ValueError, match='num_heads=3 does not divide the width 8'):
    init(jax.random.key(0), rgb, rgb)
  with pytest.raises(ValueError, match=r'shapes \(1, 4, 8\) and \(1, 3, 8\), not one'):
    init(jax.random.key(0), rgb, rgb[:, :3])
  with pytest.raises(ValueError, match='loops=0; there must be at least one'):
    cross_modal.IterativeCrossModalBlock(loops=0).init(jax.random.key(0), rgb, rgb)
