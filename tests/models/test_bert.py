import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models

SMALL = {
  'vocab_size': 20,
  'width': 8,
  'num_layers': 2,
  'num_heads': 2,
  'mlp_dim': 12,
  'max_positions': 10,
}


def _count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _inputs(length):
  return jnp.zeros((2, length), jnp.int32), jnp.ones((2, length), bool)


def test_bert_base_has_the_parameters_of_the_published_one():
  model = models.create_model('bert_base_uncased')
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), *_inputs(32)))['params']
  assert _count(params) == 109_482_240
  assert _count(params['pooler']) == 590_592


def test_padding_changes_nothing():
  model = models.create_model('bert_base_uncased', **{**SMALL, 'num_layers': 1})
  ids = np.random.default_rng(0).integers(0, 20, (2, 9))
  mask = np.arange(9) < np.array([[6], [4]])

  @jax.jit
  def run(ids, mask):
    return model.init_with_output(jax.random.key(0), ids, mask)[0]

  words, features = run(ids, mask)
  alone, features_alone = run(ids[1:, :4], mask[1:, :4])
  np.testing.assert_allclose(words[1, :4], alone[0], atol=1e-6)
  np.testing.assert_allclose(features['pooled'][1], features_alone['pooled'][0], atol=1e-6)


def test_features_are_those_documented():
  model = models.create_model('bert_base_uncased', dtype='bfloat16', **SMALL)
  (words, features), _ = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), *_inputs(7))
  )
  assert (words.shape, words.dtype) == ((2, 7, 8), jnp.bfloat16)
  assert {name: x.shape for name, x in features.items()} == {
    'layer_0': (2, 7, 8),
    'layer_1': (2, 7, 8),
    'pooled': (2, 8),
  }
  without = models.create_model('bert_base_uncased', pooler=False, **SMALL)
  (_, features), variables = jax.eval_shape(
    lambda: without.init_with_output(jax.random.key(0), *_inputs(7))
  )
  assert 'pooled' not in features
  assert 'pooler' not in variables['params']


def test_wrong_inputs_are_refused_by_name():
  model = models.create_model('bert_base_uncased', **SMALL)

  def run(ids, mask):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), ids, mask))

  ids, mask = _inputs(7)
  with pytest.raises(ValueError, match=r'ids of word pieces, int .* not float32'):
    run(ids.astype(jnp.float32), mask)
  with pytest.raises(ValueError, match=r'bool mask .* not int32'):
    run(ids, mask.astype(jnp.int32))
  with pytest.raises(ValueError, match=r'sentences of 11 pieces, but max_positions=10'):
    run(*_inputs(11))
