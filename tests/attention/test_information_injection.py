"""Values against explicit sums in float64; the recorded cases are replayed in tests/parity."""

import jax
import numpy as np
import pytest

from crossattn_jax.attention import information_injection


def _inputs(tokens=5, context=7, heads=2, dim=3):
  rng = np.random.default_rng(0)
  shapes = ((2, tokens, heads, dim), (2, context, heads, dim), (2, context, heads, dim))
  return [rng.standard_normal(shape) for shape in shapes]


def _factorized(query, key, value):
  """The equation, token by token."""
  weights = np.exp(key) / np.exp(key).sum(axis=1, keepdims=True)
  out = np.zeros((*query.shape[:3], value.shape[-1]))
  for b, n, h in np.ndindex(query.shape[:3]):
    for m in range(key.shape[1]):
      out[b, n, h] += (query[b, n, h] @ weights[b, m, h]) * value[b, m, h]
  return out


def test_factorized_attention_is_its_equation():
  with jax.enable_x64(True):
    query, key, value = _inputs()
    out = information_injection.factorized_attention(query, key, value)
    np.testing.assert_allclose(out, _factorized(query, key, value), rtol=1e-12)


def test_the_discrepancy_is_what_attention_does_not_find():
  with jax.enable_x64(True):
    query, key, value = _inputs(tokens=7)
    common, discrepancy = (
      information_injection.inject(query, key, value, injection=injection)
      for injection in information_injection.INJECTIONS
    )
    np.testing.assert_allclose(common + discrepancy, value, rtol=1e-12)


@pytest.mark.parametrize('attention', information_injection.ATTENTIONS)
def test_masked_tokens_change_nothing(attention):
  with jax.enable_x64(True):
    query, key, value = _inputs()
    mask = np.ones(key.shape[:2], bool)
    mask[:, 5:] = False
    alone = information_injection.inject(query, key[:, :5], value[:, :5], attention=attention)
    masked = information_injection.inject(query, key, value, attention=attention, mask=mask)
    np.testing.assert_allclose(masked, alone, rtol=1e-12)


def test_softmax_attention_is_scaled():
  with jax.enable_x64(True):
    query, key, value = _inputs()
    scores = np.einsum('bnhc,bmhc->bhnm', query, key) / np.sqrt(3)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum('bhnm,bmhc->bnhc', weights, value)
    out = information_injection.softmax_attention(query, key, value)
    np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_wrong_choices_and_tokens_are_refused():
  query, key, value = _inputs()
  with pytest.raises(ValueError, match='as many tokens of the query as of the value, not 5 and 7'):
    information_injection.inject(query, key, value, injection='discrepancy')
  with pytest.raises(ValueError, match="injection='all' is not one of common, discrepancy"):
    information_injection.inject(query, key, value, injection='all')
  with pytest.raises(ValueError, match="attention='full' is not one of factorized, softmax"):
    information_injection.inject(query, key, value, attention='full')
