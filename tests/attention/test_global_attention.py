import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import global_attention, self_attention


def _normal(*shape, seed=0):
  return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), jnp.float32)


def _run(module, x):
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  variables = jax.tree.map(lambda leaf: 0.3 * _normal(*leaf.shape, seed=leaf.size), variables)
  return jax.jit(module.apply)(variables, x), variables['params']


def test_without_enhancement_is_self_attention_over_the_whole_map():
  x = _normal(2, 3, 5, 16)
  out, params = _run(global_attention.GlobalAttention(), x)
  assert set(params['qkv']) == {'kernel'}
  plain = self_attention.SelfAttention(8, qkv_bias=False)
  expected = jax.jit(plain.apply)({'params': params}, x.reshape(2, 15, 16))
  np.testing.assert_allclose(out.reshape(2, 15, 16), expected, atol=1e-6)


@pytest.mark.parametrize('lepe', ['input', 'value'])
def test_enhancement_is_of_the_input_or_of_the_values(lepe):
  x = _normal(1, 4, 3, 16)
  out, params = _run(global_attention.GlobalAttention(lepe=lepe, lepe_side=3), x)
  plain = {name: params[name] for name in ('qkv', 'out')}
  bare = jax.jit(global_attention.GlobalAttention().apply)({'params': plain}, x)
  value = np.einsum('byxc,chd->byxhd', x, params['qkv']['kernel'][:, 2]).reshape(x.shape)
  source = np.pad(x if lepe == 'input' else value, ((0, 0), (1, 1), (1, 1), (0, 0)))
  kernel = np.asarray(params['lepe']['kernel'])[:, :, 0]
  local = sum(source[:, i : i + 4, j : j + 3] * kernel[i, j] for i in range(3) for j in range(3))
  local = (local + params['lepe']['bias']) @ params['out']['kernel'].reshape(16, 16)
  np.testing.assert_allclose(out - bare, local, atol=1e-4)


def test_heads_must_divide_the_width():
  with pytest.raises(ValueError, match='num_heads=8 does not divide the width 12'):
    jax.eval_shape(global_attention.GlobalAttention().init, jax.random.key(0), _normal(1, 2, 2, 12))
