"""Attention mechanisms by name."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import map_attention

SIZES = [(9, 6), (1, 1), (16, 20)]


def _attend(kind, size, stage=0, block=0, channels=32):
  module = map_attention.MapAttention(kind, stage, block, 2)
  x = jax.random.normal(jax.random.key(0), (2, *size, channels))
  return jax.eval_shape(lambda: module.init_with_output(jax.random.key(1), x))


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('kind', map_attention.list_attentions())
def test_every_attention_keeps_the_shape_of_maps_of_any_size(kind, size):
  for stage in range(4):
    for block in range(2):
      out, _ = _attend(kind, size, stage, block)
      assert out.shape == (2, *size, 32)


@pytest.mark.parametrize('kind', map_attention.list_attentions())
def test_an_odd_map_has_finite_gradients_in_every_parameter(kind):
  x = jax.random.normal(jax.random.key(0), (1, 5, 6, 16))
  module = map_attention.MapAttention(kind, 1, 1, 2)
  variables = jax.jit(module.init)(jax.random.key(1), x)
  # Gates that start at zero would hide what is behind them.
  variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
  grads = jax.jit(jax.grad(lambda v: jnp.square(module.apply(v, x)).sum()))(variables)
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert np.isfinite(grad).all(), path
  assert any(np.abs(grad).max() > 0 for grad in jax.tree.leaves(grads))


def test_criss_cross_adds_nothing_at_first():
  x = jax.random.normal(jax.random.key(0), (1, 4, 5, 16))
  out, _ = map_attention.MapAttention('criss_cross', 0, 0, 2).init_with_output(jax.random.key(1), x)
  np.testing.assert_array_equal(out, 0)


def test_an_unknown_attention_is_refused_by_name():
  with pytest.raises(
    ValueError, match=r"unknown attention 'cris_cross'; did you mean 'criss_cross'"
  ):
    _attend('cris_cross', (4, 4))


def test_a_users_own_attention_takes_part(monkeypatch):
  monkeypatch.setattr(map_attention, '_builders', dict(map_attention._builders))

  class Mean(nn.Module):
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
      return jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape)

  map_attention.register('mean')(lambda place: (Mean, {}))
  out, _ = _attend('mean', (3, 4))
  assert out.shape == (2, 3, 4, 32)
  with pytest.raises(ValueError, match="'mean' is already registered"):
    map_attention.register('mean')(lambda place: (Mean, {}))
