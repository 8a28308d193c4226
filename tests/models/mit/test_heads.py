"""Scores of scenes, of tokens and of class tokens, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.models.mit import heads

SCORES = jnp.array([[[1.0, -4.0], [3.0, -2.0], [50.0, 60.0]]])
MASK = jnp.array([[True, True, False]])


@pytest.mark.parametrize(('how', 'expected'), [('mean', [2, -3]), ('max', [3, -2])])
def test_scores_of_padding_do_not_count(how, expected):
  assert heads.pool_scores(SCORES, how, MASK)[0].tolist() == expected
  assert heads.pool_scores(SCORES[:, :2], how)[0].tolist() == expected


def test_class_logits_are_means_of_the_class_tokens():
  tokens = jnp.array([[[1, 3], [5, 7], [100, 100]]], jnp.bfloat16)
  logits = heads.class_logits(tokens, 2)
  assert (logits.dtype, logits.tolist()) == (jnp.float32, [[2.0, 6.0]])


def test_class_tokens_are_told_apart_both_ways():
  random = np.random.default_rng(0)
  maps = [random.standard_normal((2, 3, 5, 7)), random.standard_normal((2, 3, 7, 5))]
  expected = []
  for logits in maps:
    matrix = logits[..., :4, :4].mean(axis=1)
    for x in (matrix, matrix.swapaxes(1, 2)):
      log_probabilities = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
      expected.append(-np.diagonal(log_probabilities, axis1=1, axis2=2).mean(axis=-1))
  with jax.enable_x64(True):
    loss = jax.jit(heads.token_similarity, static_argnums=1)
    np.testing.assert_allclose(loss(maps, 4), np.mean(expected, axis=0), rtol=1e-12)
    gradient = jax.jit(jax.grad(lambda x: heads.token_similarity(x, 4).sum()))
    assert 'scatter' not in gradient.lower(maps).as_text()
