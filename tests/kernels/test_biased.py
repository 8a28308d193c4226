"""Attention with a bias: the TPU kernel, interpreted, against the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import kernels
from crossattn_jax.training.compile import aot

# batch, queries, keys, heads, width of a head
SHAPES = {
  'one query': (1, 1, 3, 1, 8),
  'odd': (2, 7, 9, 2, 8),
  'heads that fill the lanes': (2, 49, 49, 5, 32),
  'keys and queries in two parts': (2, 300, 270, 1, 32),
}
BOUNDS = {'float32': 2e-6, 'bfloat16': 1.5e-2}


def _problem(name, dtype):
  """Arguments, of which every third bias hides its key, and a cotangent."""
  batch, queries, keys, heads, width = SHAPES[name]
  draw = np.random.RandomState(0).standard_normal
  rows = (draw((batch, tokens, heads * width)) for tokens in (queries, keys, keys, queries))
  query, key, value, cotangent = (jnp.asarray(x, dtype) for x in rows)
  hidden = (np.arange(queries)[:, None] + np.arange(keys)) % 3 == 1
  bias = jnp.where(hidden, -1e30, draw((heads, queries, keys)))
  return (query, key, value, bias.astype(jnp.float32)), cotangent, heads


def _with_gradients(function, arguments, cotangent):
  out, pull_back = jax.vjp(function, *arguments)
  return out, *pull_back(cotangent)


@pytest.mark.parametrize(
  ('name', 'dtype', 'masked'),
  [
    *((name, 'float32', False) for name in SHAPES),
    ('odd', 'bfloat16', False),
    ('odd', 'float32', True),
  ],
)
def test_kernel_equals_the_definition(name, dtype, masked):
  arguments, cotangent, heads = _problem(name, dtype)
  # Every query sees a key or two of six that no mask hides.
  mask = jnp.broadcast_to(jnp.arange(arguments[1].shape[1]) < 6, arguments[1].shape[:2])
  attend = functools.partial(
    kernels.biased_attention, num_heads=heads, key_mask=mask if masked else None
  )
  results = _with_gradients(
    functools.partial(attend, implementation='tpu', interpret=True), arguments, cotangent
  )
  with jax.enable_x64(True):
    exact = [np.asarray(x, np.float64) for x in (*arguments, cotangent)]
    expected = _with_gradients(
      functools.partial(attend, implementation='reference'), exact[:-1], exact[-1]
    )
    for got, wanted in zip(results, expected, strict=True):
      error = np.linalg.norm(np.asarray(got, np.float64) - wanted)
      assert error <= BOUNDS[dtype] * np.linalg.norm(wanted)
  assert results[0].dtype == dtype
  assert results[-1].dtype == jnp.float32


def test_a_query_without_any_key_gets_something_finite():
  arguments, cotangent, heads = _problem('odd', 'float32')
  attend = functools.partial(
    kernels.biased_attention,
    num_heads=heads,
    key_mask=jnp.zeros(arguments[1].shape[:2], bool).at[0].set(True),
    implementation='tpu',
    interpret=True,
  )
  for result in _with_gradients(attend, arguments, cotangent):
    assert np.isfinite(result).all()


def test_the_definition_is_the_equation():
  (query, key, value, bias), _, heads = _problem('odd', 'float32')
  out = kernels.biased_attention(query, key, value, bias, num_heads=heads, scale=0.5)
  for h in range(heads):
    own = slice(8 * h, 8 * h + 8)
    scores = query[0, :, own] @ key[0, :, own].T * 0.5 + bias[h]
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(out[0, :, own], weights @ value[0, :, own], atol=1e-5)


def test_tpus_get_the_kernel_where_it_fits_and_others_never():
  def program(queries, dtype, platform):
    x = jax.ShapeDtypeStruct((1, queries, 64), dtype)
    bias = jax.ShapeDtypeStruct((2, queries, queries), jnp.float32)
    attend = functools.partial(kernels.biased_attention, num_heads=2)
    return jax.jit(attend).trace(x, x, x, bias).lower(lowering_platforms=(platform,)).as_text()

  assert 'tpu_custom_call' in program(49, jnp.bfloat16, 'tpu')
  assert 'tpu_custom_call' not in program(49, jnp.bfloat16, 'cpu')
  assert 'tpu_custom_call' not in program(600, jnp.bfloat16, 'tpu')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'num_heads': 3}, '16 channels of query do not divide into num_heads=3'),
    ({'implementation': 'gpu'}, "unknown implementation 'gpu'; there are auto, reference, tpu"),
    ({'bias': jnp.zeros((2, 7, 7))}, r'bias must be .* = \(2, 7, 9\), got \(2, 7, 7\)'),
    ({'key': jnp.zeros((2, 9, 8))}, r'key \(2, 9, 8\) .* do not go together'),
    ({'key_mask': jnp.ones((2, 7), bool)}, r'key_mask must be bool .* = \(2, 9\), got .*2, 7'),
    ({'query': jnp.zeros((2, 7))}, r'query must be \[batch, tokens, channels\], got \(2, 7\)'),
  ],
  ids=str,
)
def test_arguments_that_do_not_fit_are_refused(change, message):
  arguments, _, heads = _problem('odd', 'float32')
  names = ('query', 'key', 'value', 'bias')
  arguments = dict(zip(names, arguments, strict=True)) | {'num_heads': heads} | change
  with pytest.raises(ValueError, match=f'biased_attention: .*{message}'):
    kernels.biased_attention(**arguments)


def test_the_kernel_refuses_what_does_not_fit_its_memory():
  x, bias = jnp.zeros((1, 600, 8)), jnp.zeros((1, 600, 600))
  with pytest.raises(ValueError, match=r'up to 512 queries and keys'):
    kernels.biased_attention(x, x, x, bias, num_heads=1, implementation='tpu')


@pytest.mark.tpu_aot
def test_gradients_compile_for_the_tpu_with_the_least_vector_memory():
  # The first stage of CrossFormer-L: the most that is asked for.
  _, devices = aot.topology_devices('v4:2x2x1')
  place = jax.sharding.SingleDeviceSharding(devices[0])
  x = jax.ShapeDtypeStruct((8, 392, 128), jnp.bfloat16, sharding=place)
  bias = jax.ShapeDtypeStruct((4, 392, 392), jnp.float32, sharding=place)

  def gradients(*arguments):
    attend = functools.partial(kernels.biased_attention, num_heads=4)
    return _with_gradients(attend, arguments[:-1], arguments[-1])

  text = jax.jit(gradients).lower(x, x, x, bias, x).compile().as_text()
  assert text.count('custom_call_target="tpu_custom_call"') == 2
