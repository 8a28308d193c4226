import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import kernels
from crossattn_jax.attention import long_short_distance as lsd

# size, kind, group size, interval, options -> group, interval, padding, as the specification says
DECISIONS = [
  ((56, 56), 'short', 7, 8, {}, (7, 7), 1, ((0, 0), (0, 0))),
  ((56, 56), 'long', 7, 8, {}, (7, 7), 8, ((0, 0), (0, 0))),
  ((56, 56), 'long', 4, 4, {}, (4, 4), 4, ((0, 8), (0, 8))),
  ((14, 10), 'long', 4, 2, {'center_padding': True}, (4, 4), 2, ((1, 1), (3, 3))),
  ((6, 9), 'long', 7, 2, {}, (6, 6), 1, ((0, 0), (0, 3))),
  ((5, 9), 'long', 7, 2, {'small_map': 'pad'}, (9, 9), 1, ((0, 4), (0, 0))),
  ((10, 10), 'long', 4, 8, {'adaptive_interval': True}, (4, 4), 3, ((0, 2), (0, 2))),
  ((9, 14), 'long', 4, 8, {'adaptive_interval': True}, (4, 4), 4, ((0, 7), (0, 2))),
  ((10, 17), 'long', 4, 3, {'lda': 'global'}, (4, 6), 3, ((0, 2), (0, 1))),
  ((9, 13), 'short', 4, 3, {'lda': 'global'}, (4, 4), 1, ((0, 3), (0, 3))),
]


def _draw(*shape, seed=0):
  return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), jnp.result_type(float))


@pytest.mark.parametrize(
  ('size', 'kind', 'group_size', 'interval', 'options', 'group', 'used', 'padding'), DECISIONS
)
def test_maps_are_cut_as_specified(size, kind, group_size, interval, options, group, used, padding):
  grouping = lsd.find_grouping(size, kind, group_size, interval, **options)
  assert grouping == kernels.Grouping(size, group, (used, used), padding)


@pytest.mark.parametrize('lda', lsd.LONG_DISTANCES)
def test_one_set_of_parameters_serves_every_size_of_map(lda):
  module = lsd.LongShortDistanceAttention(2, kind='long', group_size=3, interval=2, lda=lda)
  x = _draw(1, 8, 8, 32)
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  assert variables['params']['position_bias']['linear_1']['kernel'].shape == (2, 2)
  for size in ((5, 9), (2, 3), (16, 7)):
    shape = jax.ShapeDtypeStruct((1, *size, 32), jnp.float32)
    assert jax.eval_shape(module.apply, variables, shape).shape == shape.shape


def test_visible_padding_takes_part_and_masked_padding_does_not():
  masked = lsd.LongShortDistanceAttention(2, group_size=4)
  x = _draw(1, 6, 5, 8)
  params = jax.jit(masked.init)(jax.random.key(0), x)['params']
  params['qkv']['bias'] += 1.0
  (out, weights), (visible, all_weights) = (
    jax.jit(lambda p, m=m: m.apply({'params': p}, x, with_weights=True))(params)
    for m in (masked, masked.clone(mask_padding=False))
  )
  real = masked.grouping((6, 5)).real_tokens()
  assert np.all(np.where(real[:, None], 0, weights) == 0)
  assert np.all(np.asarray(all_weights) > 0)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
  assert np.abs(out - visible).max() > 1e-3


def test_bfloat16_keeps_scores_and_biases_in_float32():
  module = lsd.LongShortDistanceAttention(2, group_size=4, dtype=jnp.bfloat16)
  x = _draw(1, 4, 4, 32).astype(jnp.bfloat16)
  params = jax.jit(module.init)(jax.random.key(0), x)
  out, weights = jax.jit(lambda p: module.apply(p, x, with_weights=True))(params)
  assert out.dtype == jnp.bfloat16
  assert weights.dtype == jnp.float32


def test_tpus_take_the_kernel_in_bfloat16_where_a_strip_fits():
  def program(size, dtype, **options):
    module = lsd.LongShortDistanceAttention(2, group_size=4, dtype=dtype, **options)
    x = jax.ShapeDtypeStruct((2, *size, 32), dtype)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    traced = jax.jit(module.apply).trace(variables, x)
    return traced.lower(lowering_platforms=('tpu',)).as_text()

  assert 'tpu_custom_call' in program((8, 8), jnp.bfloat16)
  assert 'tpu_custom_call' in program((8, 8), jnp.bfloat16, kind='long', interval=2)
  assert 'tpu_custom_call' not in program((8, 8), jnp.float32)
  assert 'tpu_custom_call' in program((8, 7), jnp.bfloat16)
  assert 'tpu_custom_call' not in program((8, 8), jnp.bfloat16, position_bias=False)
  assert 'tpu_custom_call' not in program((8, 256), jnp.bfloat16)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'kind': 'middle'}, r"kind='middle' is not one of short, long"),
    ({'lda': 'local'}, r"lda='local' is not one of region, global"),
    ({'interval': 0}, r'interval=0 must be positive'),
    ({'num_heads': 3}, r'num_heads=3 does not divide the width 8'),
  ],
  ids=str,
)
def test_arguments_that_do_not_fit_are_refused(change, message):
  module = lsd.LongShortDistanceAttention(2, group_size=4)
  module = dataclasses.replace(module, **change)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4, 4, 8)))
