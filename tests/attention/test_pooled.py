import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.attention import pooled


def _draw(*shape, dtype=np.float64, seed=0):
  return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), dtype)


def _randomised(variables, seed=1):
  rng = np.random.RandomState(seed)
  return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), variables)


def _norm(x, params):
  mean, std = x.mean(-1, keepdims=True), np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return (x - mean) / std * np.asarray(params['scale']) + np.asarray(params['bias'])


def _pool(x, params, stride):
  """By the definition: [batch, height, width, heads, head_dim], one filter for all heads."""
  kernel = np.asarray(params['kernel'])[:, :, 0]
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
  rows, columns = range(0, x.shape[1], stride), range(0, x.shape[2], stride)
  out = np.stack(
    [
      np.stack(
        [np.einsum('bijhd,ijd->bhd', padded[:, y : y + 3, u : u + 3], kernel) for u in columns], 1
      )
      for y in rows
    ],
    1,
  )
  return _norm(out, params['norm'])


def _expected(x, params, stride):
  """Pooled attention of a map without a class token."""
  qkv = np.einsum('byxc,cthd->tbyxhd', x, np.asarray(params['qkv']['kernel']))
  qkv += np.asarray(params['qkv']['bias'])[:, None, None, None]
  query = qkv[0].reshape(x.shape[0], -1, *qkv.shape[-2:])
  key, value = (
    _pool(part, params[f'pool_{name}'], stride).reshape(x.shape[0], -1, *qkv.shape[-2:])
    for part, name in zip(qkv[1:], ('key', 'value'), strict=True)
  )
  scores = np.einsum('bqhd,bkhd->bhqk', query, key) / np.sqrt(query.shape[-1])
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  out = np.einsum('bhqk,bkhd->bqhd', weights, value)
  out = np.einsum('bqhd,hdc->bqc', out, np.asarray(params['out']['kernel']))
  return (out + np.asarray(params['out']['bias'])).reshape(x.shape)


@pytest.mark.parametrize(('size', 'stride'), [((5, 4), 2), ((3, 6), 1)], ids=str)
def test_a_map_attends_to_its_pooled_self(size, stride):
  with jax.enable_x64(True):
    x = _draw(2, *size, 6)
    module = pooled.PooledAttention(2, stride, param_dtype=jnp.float64)
    variables = _randomised(jax.eval_shape(module.init, jax.random.key(0), x))
    out = jax.jit(module.apply)(variables, x)
    np.testing.assert_allclose(
      out, _expected(np.asarray(x), variables['params'], stride), atol=1e-12
    )


def test_heads_are_pooled_by_the_same_filters_and_class_tokens_not_at_all():
  with jax.enable_x64(True):
    extra, image = _draw(2, 1, 6), _draw(2, 4, 3, 6, seed=2)
    kernel = _draw(3, 3, 1, 3, seed=1)
    out = pooled.convolve_heads(image, kernel, 2)
    assert out.shape == (2, 2, 2, 6)
    for head in (slice(3), slice(3, 6)):
      alone = pooled.convolve_heads(image[..., head], kernel, 2)
      np.testing.assert_allclose(out[..., head], alone, atol=1e-14)

    module = pooled.PoolHeads(2, 2, param_dtype=jnp.float64)
    variables = _randomised(jax.eval_shape(module.init, jax.random.key(0), extra, image))
    apply = functools.partial(module.apply, variables)
    tokens = apply(extra, image)
    assert tokens.shape == (2, 1 + 4, 2, 3)
    np.testing.assert_allclose(tokens[:, 1:], apply(extra[:, :0], image), atol=1e-14)
    np.testing.assert_allclose(tokens[:, :1], apply(extra, image + 1)[:, :1], atol=1e-14)


def test_rows_and_columns_may_have_strides_of_their_own():
  image, kernel = jnp.ones((1, 5, 6, 4)).cumsum(1).cumsum(2), jnp.ones((3, 3, 1, 2)).cumsum(0)
  every = pooled.convolve_heads(image, kernel)
  np.testing.assert_array_equal(pooled.convolve_heads(image, kernel, (2, 3)), every[:, ::2, ::3])


def test_pooled_queries_shrink_the_map_and_may_widen_it():
  x = jax.ShapeDtypeStruct((1, 5, 7, 8), jnp.float32)
  module = pooled.PooledAttention(4, 2, query_stride=2, channels=16)
  out, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
  assert out.shape == (1, 3, 4, 16)


@pytest.mark.parametrize(
  ('module', 'shape', 'message'),
  [
    (pooled.PooledAttention(3), (1, 2, 2, 4), 'num_heads=3 does not divide'),
    (pooled.PooledAttention(2), (1, 4, 4), 'tokens need their grid'),
  ],
  ids=['heads', 'grid'],
)
def test_what_does_not_fit_is_refused(module, shape, message):
  with pytest.raises(ValueError, match=message):
    module.init(jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize('tokens', [5, 8])
def test_tokens_that_are_neither_a_grid_nor_that_and_a_class_token_are_refused(tokens):
  with pytest.raises(ValueError, match=f'{tokens} tokens are no grid of 2 x 3'):
    pooled.split_tokens(jnp.zeros((1, tokens, 4)), (2, 3))
