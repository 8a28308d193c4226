"""Dot-product attention in all its forms, against the closed form."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from crossattn_jax import kernels, parallel
from crossattn_jax.kernels.dot_product import tpu
from crossattn_jax.training.compile import aot

SHAPES = [(2, 9, 3, 8), (1, 1, 1, 4), (2, 197, 3, 64)]


def _qkv(shape, dtype):
  return jnp.asarray(np.random.RandomState(0).standard_normal((3, *shape)), dtype)


def _closed_form(query, key, value, scale):
  """Softmax attention in float64 numpy."""
  query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
  scores = np.einsum('bqhd,bkhd->bhqk', query, key) * scale
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('bhqk,bkhd->bqhd', weights, value)


@pytest.mark.parametrize('scale', [None, 0.3])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_is_softmax_attention(shape, scale):
  with jax.enable_x64(True):
    qkv = _qkv(shape, jnp.float64)
    out = kernels.dot_product_attention(*qkv, scale=scale)
  expected = _closed_form(*qkv, scale or shape[-1] ** -0.5)
  np.testing.assert_allclose(out, expected, atol=1e-13)


def test_tokens_that_a_mask_leaves_out_take_no_part():
  query, key, value = _qkv((2, 9, 3, 8), jnp.float32)
  mask = jnp.arange(9) < jnp.array([[9], [5]])
  out = jax.jit(kernels.dot_product_attention)(query, key, value, mask=mask)
  for example, end in enumerate((9, 5)):
    one = slice(example, example + 1)
    expected = _closed_form(query[one], key[one, :end], value[one, :end], 8**-0.5)
    np.testing.assert_allclose(out[one], expected, atol=1e-5)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float64, 1e-12), (jnp.float32, 2e-5)])
@pytest.mark.parametrize('pooling', [1, 10])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_gradient_is_the_softmax_s(shape, pooling, dtype, tolerance):
  """With P the weights and dO the cotangent: dV = P^T dO, dS = P * (dO V^T - sum(dO O))."""
  with jax.enable_x64(True):
    query, key, value = _qkv(shape, dtype)
    qkv = query, key[:, ::pooling], value[:, ::pooling]
    out, vjp = jax.vjp(kernels.dot_product_attention, *qkv)
    cotangent = jnp.sin(jnp.arange(out.size, dtype=dtype)).reshape(out.shape)
    actual = vjp(cotangent)
  query, key, value = (np.asarray(part, np.float64) for part in qkv)
  scale = shape[-1] ** -0.5
  weights = np.exp(np.einsum('bqhd,bkhd->bhqk', query, key) * scale)
  weights /= weights.sum(-1, keepdims=True)
  delta = np.einsum('bqhd,bqhd->bhq', cotangent, out)
  d_weights = np.einsum('bqhd,bkhd->bhqk', cotangent, value)
  d_scores = weights * (d_weights - delta[..., None]) * scale
  expected = [
    np.einsum('bhqk,bkhd->bqhd', d_scores, key),
    np.einsum('bhqk,bqhd->bkhd', d_scores, query),
    np.einsum('bhqk,bqhd->bkhd', weights, cotangent),
  ]
  for part, expected_part in zip(actual, expected, strict=True):
    np.testing.assert_allclose(part, expected_part, atol=tolerance)


def test_large_scores_do_not_overflow():
  query, key, value = _qkv((1, 5, 2, 4), jnp.float32)
  out = kernels.dot_product_attention(1e4 * query, key, value)
  assert np.all(np.isfinite(out))


def test_bfloat16_stays_close_to_float32():
  qkv = _qkv((2, 33, 2, 16), jnp.float32)
  out = kernels.dot_product_attention(*qkv.astype(jnp.bfloat16))
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), _closed_form(*qkv, 0.25), atol=0.05)


def _tpu_program(tokens, dtype, mesh, heads=3):
  batch = NamedSharding(mesh, PartitionSpec('data'))
  qkv = jax.ShapeDtypeStruct((8, tokens, heads, 32), dtype, sharding=batch)
  loss = lambda *qkv: jnp.sum(kernels.dot_product_attention(*qkv).astype(jnp.float32))
  with jax.set_mesh(mesh):
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(qkv, qkv, qkv).compile().as_text()


@pytest.mark.tpu_aot
def test_tpus_take_the_kernel_where_there_are_many_tokens():
  _, devices = aot.topology_devices('v5e:2x2')
  mesh = parallel.create_mesh(devices=devices)
  program = _tpu_program(300, jnp.bfloat16, mesh)
  # Each device has its own part of the batch, forward and backward.
  assert program.count('custom_call_target="tpu_custom_call"') == 2
  assert 'bf16[2,3,128,96]' in program
  assert 'all-gather' not in program
  assert 'tpu_custom_call' not in _tpu_program(300, jnp.float32, mesh)
  assert 'tpu_custom_call' not in _tpu_program(200, jnp.bfloat16, mesh)
  assert 'tpu_custom_call' in _tpu_program(200, jnp.bfloat16, mesh, heads=6)


@pytest.mark.parametrize('tokens', [1, 128, 300])
def test_the_form_for_tpus_computes_the_same(tokens):
  qkv = _qkv((2, tokens, 3, 8), jnp.float32)
  out = tpu.dot_product_attention(*qkv, scale=0.3, interpret=True)
  np.testing.assert_allclose(out, _closed_form(*qkv, 0.3), atol=1e-5)


def test_dropout_acts_on_the_weights():
  qkv = _qkv((1, 6, 1, 4), jnp.float32)
  doubled = kernels.dot_product_attention(*qkv, dropout=lambda weights: 2 * weights)
  plain = kernels.dot_product_attention(*qkv)
  np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-5)
