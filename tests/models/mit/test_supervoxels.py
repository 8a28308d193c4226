"""Means over supervoxels: by products alone, whatever is in the padding."""

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.models.mit import supervoxels

# The first scene has no cell of id 1, and one row of padding; of the second all are of one.
IDS = jnp.array([[0, 2, 2, 0, 3, -1], [0, 0, 0, 0, 0, 0]])


def features():
  x = np.random.default_rng(0).standard_normal((2, 6, 4))
  x[0, 5] = np.nan
  return x


def test_supervoxels_are_the_means_of_their_cells():
  with jax.enable_x64(True):
    x = features()
    found = jax.jit(supervoxels.summarise)(x, IDS, jnp.array([4, 1]), jnp.zeros((2, 5, 3)))
  means = np.stack([x[0, [0, 3]].mean(0), np.zeros(4), x[0, [1, 2]].mean(0), x[0, 4], np.zeros(4)])
  np.testing.assert_allclose(found.means[0], means, atol=1e-12)
  np.testing.assert_allclose(found.means[1, 0], x[1].mean(0), atol=1e-12)
  assert found.counts.tolist() == [[2, 0, 2, 1, 0], [6, 0, 0, 0, 0]]
  distance = np.concatenate([x[0, [0, 3]] - means[0], x[0, [1, 2]] - means[2], x[0, 4:5] * 0])
  np.testing.assert_allclose(found.inconsistency[0], np.square(distance).mean(), rtol=1e-12)
  np.testing.assert_allclose(found.inconsistency[1], np.var(x[1], axis=0).mean(), rtol=1e-12)


def test_an_id_without_cells_is_a_token_unless_it_is_masked():
  arguments = features(), IDS, jnp.array([4, 1]), jnp.zeros((2, 5, 3))
  summarise = jax.jit(supervoxels.summarise, static_argnums=4)
  assert summarise(*arguments, False).mask.sum(axis=1).tolist() == [4, 1]
  mask = summarise(*arguments, True).mask
  assert mask.tolist() == [[True, False, True, True, False], [True] + [False] * 4]


def test_gradients_reach_cells_without_scatter_and_padding_without_nan():
  def loss(x):
    found = supervoxels.summarise(x, IDS, jnp.array([4, 1]), jnp.zeros((2, 5, 3)))
    return jnp.square(found.means).sum() + found.inconsistency.sum()

  gradient = jax.jit(jax.grad(loss))
  assert 'scatter' not in gradient.lower(features()).as_text()
  result = gradient(features())
  assert not result[0, 5].any()
  assert result[0, :5].all()
  assert result[1].all()


def test_bfloat16_counts_exactly():
  ids = jnp.zeros((1, 1000), jnp.int32)
  members = supervoxels.membership(ids, 2)
  means = jax.jit(supervoxels.pool)(jnp.full((1, 1000, 2), 3, jnp.bfloat16), members)
  assert means.dtype == jnp.float32
  np.testing.assert_allclose(means, [[[3, 3], [0, 0]]], rtol=1e-6)
