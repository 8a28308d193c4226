import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import cross_attention

# batch, tokens, heads, head_dim
SHAPES = [(2, 13, 4, 8), (1, 1, 2, 16), (3, 401, 3, 32), (2, 5, 1, 7)]


def _arrays(shape, dtype):
  """Query, tokens and the kernels and biases of key and value."""
  batch, tokens, heads, head_dim = shape
  channels = heads * head_dim
  shapes = {
    'query': (batch, heads, head_dim),
    'tokens': (batch, tokens, channels),
    'key_kernel': (channels, heads, head_dim),
    'key_bias': (heads, head_dim),
    'value_kernel': (channels, heads, head_dim),
    'value_bias': (heads, head_dim),
  }
  rng = np.random.RandomState(0)
  return {name: jnp.asarray(rng.standard_normal(s), dtype) for name, s in shapes.items()}


def _projected(a, dropout=None):
  key = jnp.einsum('bnc,chd->bnhd', a['tokens'], a['key_kernel']) + a['key_bias']
  value = jnp.einsum('bnc,chd->bnhd', a['tokens'], a['value_kernel']) + a['value_bias']
  return cross_attention.class_token_attention(a['query'], key, value, dropout=dropout)


def _folded(a, dropout=None):
  return cross_attention.folded_class_token_attention(
    a['query'],
    a['tokens'],
    a['key_kernel'],
    a['value_kernel'],
    a['value_bias'],
    dropout=dropout,
  )


def _drop_every_third(weights):
  kept = np.arange(weights.shape[-1]) % 3 != 1
  return weights * kept / 0.75


def _assert_trees_close(actual, expected, tolerance):
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(jnp.abs(b).max())))


def test_class_token_attention_is_the_paper_s_equation():
  rng = np.random.RandomState(1)
  query = rng.standard_normal((2, 3, 4))
  key, value = rng.standard_normal((2, 2, 6, 3, 4))
  with jax.enable_x64(True):
    out, weights = cross_attention.class_token_attention(
      jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)
    )
  for b in range(2):
    for h in range(3):
      scores = np.exp(key[b, :, h] @ query[b, h] / 2)  # head_dim 4: the scale is 1/2
      expected = scores / scores.sum()
      np.testing.assert_allclose(weights[b, h], expected, atol=1e-14)
      np.testing.assert_allclose(out[b, h], expected @ value[b, :, h], atol=1e-14)


@pytest.mark.parametrize('dropout', [None, _drop_every_third], ids=['plain', 'dropout'])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_folding_changes_neither_value_nor_gradient(shape, dropout):
  def loss(form, arrays):
    out, weights = form(arrays, dropout)
    return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(3 * weights))

  with jax.enable_x64(True):
    arrays = _arrays(shape, jnp.float64)
    _assert_trees_close(_folded(arrays, dropout), _projected(arrays, dropout), 1e-12)
    folded, projected = (
      jax.grad(functools.partial(loss, form))(arrays) for form in (_folded, _projected)
    )
    _assert_trees_close(folded, projected, 1e-12)


@pytest.mark.parametrize('form', ['folded', 'projected'])
def test_both_forms_share_their_parameters_and_the_result(form):
  with jax.enable_x64(True):
    x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 9, 24)))
    module = cross_attention.ClassTokenAttention(3, form=form, param_dtype=jnp.float64)
    reference = module.clone(form='auto')
    variables = reference.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape), variables)
    chex_shapes = jax.tree.map(jnp.shape, module.init(jax.random.key(0), x))
    assert chex_shapes == jax.tree.map(jnp.shape, variables)
    out, weights = module.apply(variables, x)
    expected, expected_weights = reference.apply(variables, x)
  assert out.shape == (2, 1, 24)
  assert weights.shape == (2, 3, 9)
  np.testing.assert_allclose(out, expected, atol=1e-12)
  np.testing.assert_allclose(weights, expected_weights, atol=1e-12)


def test_both_forms_drop_the_same_weights_in_training():
  with jax.enable_x64(True):
    x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 9, 24)))
    folded, projected = (
      cross_attention.ClassTokenAttention(
        3, attention_drop_rate=0.5, form=form, param_dtype=jnp.float64
      )
      for form in ('folded', 'projected')
    )
    variables = folded.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape), variables)
    rngs = {'dropout': jax.random.key(2)}
    out, weights = folded.apply(variables, x, True, rngs=rngs)
    expected, expected_weights = projected.apply(variables, x, True, rngs=rngs)
    undropped, _ = folded.apply(variables, x)
  np.testing.assert_allclose(out, expected, atol=1e-11)
  np.testing.assert_allclose(weights, expected_weights, atol=1e-12)
  assert np.abs(out - undropped).max() > 0.1


def test_key_bias_gets_no_gradient():
  x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 9, 24)), jnp.float32)
  module = cross_attention.ClassTokenAttention(3, form='folded')
  variables = module.init(jax.random.key(0), x)
  grads = jax.grad(lambda v: jnp.sum(module.apply(v, x)[0]))(variables)
  assert not np.any(grads['params']['key']['bias'])
  assert np.any(grads['params']['value']['bias'])


def test_folding_pays_for_a_sequence_and_not_for_the_class_token_alone():
  assert cross_attention.folding_pays(tokens=401, channels=192, num_heads=6)
  assert cross_attention.folding_pays(tokens=197, channels=384, num_heads=6)
  assert not cross_attention.folding_pays(tokens=1, channels=384, num_heads=6)


@pytest.mark.parametrize('form', ['folded', 'projected'])
def test_bfloat16_computes_the_softmax_in_float32(form):
  x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 9, 24)), jnp.float32)
  exact = cross_attention.ClassTokenAttention(3, form=form, kernel_init=nn.initializers.normal(0.3))
  variables = exact.init(jax.random.key(0), x)
  out, weights = exact.clone(dtype=jnp.bfloat16).apply(variables, x)
  expected, expected_weights = exact.apply(variables, x)
  assert out.dtype == jnp.bfloat16
  assert weights.dtype == jnp.float32
  np.testing.assert_allclose(weights, expected_weights, atol=0.05)
  np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.05)


def test_wrong_heads_and_forms_are_refused():
  x = jnp.zeros((1, 3, 10))
  with pytest.raises(ValueError, match='num_heads=4 does not divide the width 10'):
    cross_attention.ClassTokenAttention(4).init(jax.random.key(0), x)
  with pytest.raises(ValueError, match="unknown form 'fast'; use 'auto', 'projected' or 'folded'"):
    cross_attention.ClassTokenAttention(2, form='fast').init(jax.random.key(0), x)
