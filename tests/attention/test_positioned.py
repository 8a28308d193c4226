import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.attention import positioned


def test_positions_are_of_queries_and_keys_and_not_of_values():
  rng = np.random.default_rng(0)
  x, others, x_position, position = (
    rng.standard_normal(shape).astype(np.float32)
    for shape in ((2, 3, 8), (2, 4, 8), (3, 8), (4, 8))
  )
  module = positioned.PositionedAttention(num_heads=2)
  (out, weights), variables = module.init_with_output(
    jax.random.key(0), *map(jnp.asarray, (x, others, x_position, position))
  )
  params = jax.tree.map(np.asarray, variables['params'])
  query, key, value = (
    np.einsum('bnc,chd->bnhd', part, params['qkv']['kernel'][:, i])
    for i, part in enumerate((x + x_position, others + position, others))
  )
  expected = positioned.attention_weights(query, key)
  scores = np.exp(np.einsum('bnhd,bmhd->bhnm', query, key) / 2)
  np.testing.assert_allclose(expected, scores / scores.sum(axis=-1, keepdims=True), rtol=1e-4)
  np.testing.assert_allclose(weights, expected.mean(axis=1), rtol=1e-4)
  attended = np.einsum('bhnm,bmhd->bnhd', expected, value)
  np.testing.assert_allclose(
    out, np.einsum('bnhd,hdc->bnc', attended, params['out']['kernel']), atol=1e-5
  )
