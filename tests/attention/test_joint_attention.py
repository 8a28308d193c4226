"""Against one explicit softmax in float64; the recorded cases are replayed in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import joint_attention

HEADS, DIM = 2, 3
TOKENS = (4, 6)


def _set(tokens, leading=(2,), seed=0):
  """Query, key and value of a set of tokens."""
  rng = np.random.default_rng(seed)
  return [rng.standard_normal((*leading, tokens, HEADS, DIM)) for _ in range(3)]


def _stacked(query, key, value, mask):
  """Attention to tokens that are one array."""
  scores = np.einsum('bnhd,bmhd->bhnm', query, key) / np.sqrt(DIM)
  weights = np.exp(scores) * mask[:, None, None]
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('bhnm,bmhd->bnhd', weights, value), weights


def test_several_sets_are_attended_to_as_if_they_were_stacked():
  (query, *first), (_, *second) = (_set(tokens, seed=i) for i, tokens in enumerate(TOKENS))
  mask = np.ones((2, TOKENS[1]), bool)
  mask[1, 2:] = False
  key, value = (np.concatenate(pair, axis=1) for pair in zip(first, second, strict=True))
  stacked_mask = np.concatenate([np.ones((2, TOKENS[0]), bool), mask], axis=1)
  with jax.enable_x64(True):
    out, weights = joint_attention.joint_attention(
      query, *zip(first, second, strict=True), [None, mask]
    )
    expected, expected_weights = _stacked(query, key, value, stacked_mask)
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-12)
  assert not np.any(weights[1, ..., TOKENS[0] + 2 :])


def test_leading_axes_broadcast_to_all_pairs():
  images, captions = 3, 2
  query, *first = _set(TOKENS[0], (images, 1))
  _, *second = _set(TOKENS[1], (1, captions), seed=1)
  with jax.enable_x64(True):
    out, weights = joint_attention.joint_attention(
      query, *zip(first, second, strict=True), [None, None]
    )
    assert out.shape == (images, captions, TOKENS[0], HEADS, DIM)
    assert weights.shape == (images, captions, HEADS, TOKENS[0], sum(TOKENS))
    for i, j in np.ndindex(images, captions):
      alone, _ = joint_attention.joint_attention(
        query[i], *zip([x[i] for x in first], [x[:, j] for x in second], strict=True), [None, None]
      )
      np.testing.assert_allclose(out[i, j], alone[0], rtol=1e-12)


def test_where_no_token_takes_part_the_result_is_finite():
  query, key, value = (x.astype(np.float32) for x in _set(TOKENS[0]))
  mask = np.zeros((2, TOKENS[0]), bool)
  out, _ = joint_attention.joint_attention(query, [key], [value], [mask])
  np.testing.assert_allclose(out, np.broadcast_to(value.mean(1, keepdims=True), out.shape), 1e-5)


def test_dropout_is_applied_to_the_weights_and_not_to_those_returned():
  query, key, value = (x.astype(np.float32) for x in _set(TOKENS[0]))
  out, weights = joint_attention.joint_attention(
    query, [key], [value], [None], dropout=lambda weights: 2 * weights
  )
  plain, same = joint_attention.joint_attention(query, [key], [value], [None])
  np.testing.assert_allclose(out, 2 * plain, rtol=1e-6)
  np.testing.assert_array_equal(weights, same)


def test_a_unit_lets_one_set_or_several_attend_with_the_same_parameters():
  """Two sets, stacked to one, are the same tokens."""
  with jax.enable_x64(True):
    unit = joint_attention.PostNormUnit(width=8, num_heads=2, mlp_dim=12, param_dtype=jnp.float64)
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((2, tokens, 8)) for tokens in TOKENS)

    def both(unit, first, second):
      apart, _ = unit.attend([unit.project(first), unit.project(second)])
      return jnp.concatenate(apart, axis=1), unit(jnp.concatenate([first, second], axis=1))

    run = jax.jit(lambda *sets: unit.init_with_output(jax.random.key(0), *sets, method=both)[0])
    np.testing.assert_allclose(*run(first, second), rtol=1e-10)


def test_units_compute_in_their_dtype_and_weigh_in_float32():
  unit = joint_attention.PostNormUnit(width=8, num_heads=2, mlp_dim=12, dtype=jnp.bfloat16)
  x = jnp.zeros((1, 3, 8))

  def attend(unit, x):
    return unit.attend([unit.project(x)])

  (results, weights), _ = jax.eval_shape(
    lambda: unit.init_with_output(jax.random.key(0), x, method=attend)
  )
  assert results[0].dtype == jnp.bfloat16
  assert weights[0].dtype == jnp.float32


def test_heads_that_do_not_divide_the_width_are_refused():
  unit = joint_attention.PostNormUnit(width=8, num_heads=3, mlp_dim=12)
  with pytest.raises(ValueError, match='num_heads=3 does not divide the width 8'):
    jax.eval_shape(lambda: unit.init(jax.random.key(0), jnp.zeros((1, 2, 8))))
