"""Interlaced attention: class tokens of the others are skipped, padding does not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import interlaced

CLASSES = 3


def tokens(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


@pytest.fixture
def decoder():
  """Two blocks, their parameters, and tokens of two views and of four supervoxels."""
  module = interlaced.InterlacedDecoder(2, 2, CLASSES, param_dtype=jnp.float64)
  with jax.enable_x64(True):
    views, voxels = tokens(2, CLASSES + 2, 8), tokens(2, CLASSES + 4, 8, seed=1)
    yield module, jax.jit(module.init)(jax.random.key(0), views, voxels), views, voxels


def test_it_is_softmax_attention_to_all_but_the_class_tokens():
  with jax.enable_x64(True):
    query, key, value = tokens(2, 5, 2, 4), tokens(2, 7, 2, 4, seed=1), tokens(2, 7, 2, 4, seed=2)
    mask = jnp.arange(7) < jnp.array([[7], [6]])
    attend = jax.jit(interlaced.class_skipping_attention, static_argnums=3)
    out, logits = attend(query, key, value, CLASSES, mask)
  expected = np.einsum('bqhd,bkhd->bhqk', query, key) / 2
  np.testing.assert_allclose(logits, expected, rtol=1e-12)
  for scene, end in enumerate((7, 6)):
    weights = np.exp(expected[scene, ..., CLASSES:end])
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum('hqk,khd->qhd', weights, value[scene, CLASSES:end])
    np.testing.assert_allclose(out[scene], mixed, rtol=1e-12)


def test_class_tokens_of_the_others_are_seen_by_the_logits_alone():
  arguments = tokens(1, 5, 2, 4), tokens(1, 7, 2, 4, seed=1), tokens(1, 7, 2, 4, seed=2)

  @jax.jit
  def gradients(*arguments):
    _, vjp = jax.vjp(lambda *x: interlaced.class_skipping_attention(*x, CLASSES), *arguments)
    out, logits = jnp.ones((1, 5, 2, 4)), jnp.ones((1, 2, 5, 7))
    return vjp((out, 0 * logits)), vjp((0 * out, logits))

  by_out, by_logits = gradients(*arguments)
  assert all(not x[:, :CLASSES].any() and x.any() for x in by_out[1:])
  assert by_logits[1].all()


def test_both_modalities_are_updated_in_turn_and_padding_does_not_matter(decoder):
  module, variables, views, voxels = decoder
  call = jax.jit(module.apply)
  plain = call(variables, views, voxels)
  padded = jnp.concatenate([voxels, jnp.full((2, 3, 8), 1e3)], axis=1)
  mask = jnp.broadcast_to(jnp.arange(CLASSES + 7) < CLASSES + 4, (2, CLASSES + 7))
  new_views, new_voxels, logits = call(variables, views, padded, mask)
  np.testing.assert_allclose(new_views, plain[0], rtol=1e-12)
  np.testing.assert_allclose(new_voxels[:, : CLASSES + 4], plain[1], rtol=1e-12)
  # Views look first.
  assert [x.shape for x in logits] == [(2, 2, 5, 10), (2, 2, 10, 5)]
  np.testing.assert_allclose(logits[0][..., :7], plain[2][0], rtol=1e-12)


def test_voxels_may_look_first(decoder):
  module, variables, views, voxels = decoder
  expected = jax.jit(module.apply)(variables, voxels, views)
  got = jax.jit(module.clone(first_query='voxels').apply)(variables, views, voxels)
  for x, y in zip(got, (expected[1], expected[0], expected[2]), strict=True):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), x, y)


def test_branches_are_dropped_in_training_only():
  module = interlaced.InterlacedBlock(2, CLASSES, drop_path_rate=0.999)
  x, others = tokens(2, 5, 8), tokens(2, 7, 8, seed=1)
  rngs = {'params': jax.random.key(0), 'drop_path': jax.random.key(0)}

  @jax.jit
  def run():
    return [module.init_with_output(rngs, x, others, train=train)[0][0] for train in (True, False)]

  dropped, kept = run()
  np.testing.assert_array_equal(dropped, x)
  assert np.abs(kept - x).max() > 0.1


def test_a_width_is_divided_by_its_heads_and_rounded_down_in_the_mlp():
  block = interlaced.InterlacedBlock(4, 20)
  x = jax.ShapeDtypeStruct((1, 22, 96), jnp.float32)
  params = jax.eval_shape(block.init, jax.random.key(0), x, x)['params']
  assert params['mlp']['fc1']['kernel'].shape == (96, 19)
  assert params['cross_attention']['key']['kernel'].shape == (96, 4, 24)
  assert 'bias' not in params['self_attention']['qkv']
  with pytest.raises(ValueError, match='num_heads=5 does not divide the width 96'):
    jax.eval_shape(interlaced.ClassSkippingAttention(5, 20).init, jax.random.key(0), x, x)
