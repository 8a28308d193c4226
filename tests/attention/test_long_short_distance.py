import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import parallel
from crossattn_jax.attention import long_short_distance as lsd
from crossattn_jax.attention.long_short_distance import Grouping

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
SIZES = [
  ((8, 8), 'short', 4, 1, {}),
  ((7, 5), 'long', 2, 2, {}),
  ((7, 10), 'long', 3, 3, {}),  # some groups are padding only
  ((7, 6), 'long', 2, 2, {'center_padding': True}),
  ((7, 8), 'long', 2, 3, {'lda': 'global'}),
  ((3, 7), 'long', 4, 2, {'small_map': 'pad'}),
]
HEADS, HEAD_DIM = 2, 4


def _ids(value):
  return 'x'.join(map(str, value)) if isinstance(value, tuple) else None


def _draw(*shape, seed=0):
  return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), jnp.result_type(float))


def _inputs(size, group):
  qkv = _draw(2, *size, 3, HEADS, HEAD_DIM)
  table = _draw(2 * group[0] - 1, 2 * group[1] - 1, HEADS, seed=3)
  return qkv, table


def _by_definition(qkv, table, grouping):
  """Attention among all tokens of the map, those of other groups masked out."""
  height, width = grouping.size
  row, column = np.divmod(np.arange(height * width), width)
  bias, same = jnp.zeros((HEADS, height * width, height * width)), np.ones((1,), bool)
  places = []
  for position, (before, _), group, interval in zip(
    (row, column), grouping.padding, grouping.group, grouping.interval, strict=True
  ):
    position = position + before
    region, inside = np.divmod(position, group * interval)
    same = (
      same & (region[:, None] == region) & (position[:, None] % interval == position % interval)
    )
    places.append(inside // interval)
  offset = [place[:, None] - place + n - 1 for place, n in zip(places, grouping.group, strict=True)]
  inside = [np.where(same, part, 0) for part in offset]
  bias = jnp.moveaxis(table[inside[0], inside[1]], -1, 0)
  query, key, value = jnp.moveaxis(qkv.reshape(2, -1, 3, HEADS, HEAD_DIM), 2, 0)
  scores = jnp.einsum('bqnd,bknd->bnqk', query, key) * HEAD_DIM**-0.5 + bias
  weights = jax.nn.softmax(jnp.where(same, scores, -jnp.inf))
  return jnp.einsum('bnqk,bknd->bqnd', weights, value).reshape(2, *grouping.size, HEADS, HEAD_DIM)


def _attend(qkv, table, grouping):
  bias = lsd.relative_position_bias(table)
  return lsd.long_short_distance_attention(qkv, grouping, bias)


@pytest.mark.parametrize(
  ('size', 'kind', 'group_size', 'interval', 'options', 'group', 'used', 'padding'), DECISIONS
)
def test_maps_are_cut_as_specified(size, kind, group_size, interval, options, group, used, padding):
  grouping = lsd.find_grouping(size, kind, group_size, interval, **options)
  assert grouping == Grouping(size, group, (used, used), padding)


@pytest.mark.parametrize(('size', 'kind', 'group_size', 'interval', 'options'), SIZES, ids=_ids)
def test_a_token_attends_to_its_group_and_to_nothing_else(
  size, kind, group_size, interval, options
):
  grouping = lsd.find_grouping(size, kind, group_size, interval, **options)
  with jax.enable_x64(True):
    inputs = _inputs(size, grouping.group)
    cotangent = _draw(2, *size, HEADS, HEAD_DIM, seed=4)

    def run(function):
      def loss(*x):
        out = function(*x, grouping)
        return jnp.sum(cotangent * out), out

      (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*inputs)
      return out, gradients

    expected, expected_gradients = run(_by_definition)
    result, gradients = run(_attend)
  np.testing.assert_allclose(result, expected, atol=1e-12)
  for got, wanted in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-11)


def test_the_form_for_cpus_and_that_for_other_devices_agree():
  grouping = lsd.find_grouping((7, 5), 'long', 2, 2)
  qkv, table = _inputs((8, 8), grouping.group)
  bias = lsd.relative_position_bias(table)

  def run(form):
    loss = lambda qkv, bias: jnp.sum(jnp.sin(grouping.crop(form(qkv, bias, grouping, 0.3))))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(qkv, bias)

  for ours, other in zip(
    jax.tree.leaves(run(lsd._cpu_attention)),
    jax.tree.leaves(run(lsd._group_attention)),
    strict=True,
  ):
    np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('padded', [False, True])
def test_in_float32_values_and_gradients_are_those_of_float64(padded):
  size = (7, 5) if padded else (8, 8)
  grouping = lsd.find_grouping(size, 'long', 2, 2)

  def run(dtype):
    inputs = [x.astype(dtype) for x in _inputs(size, grouping.group)]
    loss = lambda *x: jnp.sum(jnp.sin(_attend(*x, grouping)))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*inputs)

  with jax.enable_x64(True):
    expected = run(jnp.float64)
    result = run(jnp.float32)
  for got, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_cutting_a_map_and_joining_the_groups_gives_the_map():
  x = _draw(2, 7, 10, 3)
  grouping = lsd.find_grouping((7, 10), 'long', 3, 2, center_padding=True)
  groups = grouping.split(grouping.pad(x))
  assert groups.shape == (2, 16, 9, 3)
  np.testing.assert_array_equal(grouping.crop(grouping.merge(groups)), x)
  real = grouping.real_tokens()
  assert real.shape == (16, 9)
  assert real.sum() == 70


def test_biases_are_looked_up_by_offset():
  table = _draw(5, 7, 2)
  bias = lsd.relative_position_bias(table)
  assert bias.shape == (2, 12, 12)
  for q in range(12):
    for k in range(12):
      np.testing.assert_array_equal(bias[:, q, k], table[q // 4 - k // 4 + 2, q % 4 - k % 4 + 3])
  offsets = lsd.relative_offsets((3, 4))
  np.testing.assert_array_equal(offsets[1, 5], [-1, 2])


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
  table, _ = lsd.DynamicPositionBias(2, 2).init_with_output(
    jax.random.key(0), lsd.relative_offsets((4, 4))
  )
  assert table.dtype == jnp.float32


def _group_and_strip_attention(grouping, batch, interpret_jit=lambda f: f):
  """Result and gradients of both forms, the kernel interpreted."""
  tokens = grouping.group[0] * grouping.group[1]
  arguments = (
    _draw(batch, *grouping.size, 3, HEADS, HEAD_DIM),
    _draw(HEADS, tokens, tokens, seed=1),
  )
  cotangent = _draw(batch, *grouping.size, HEADS, HEAD_DIM, seed=2)

  def strips(qkv, bias):
    parts = jnp.moveaxis(qkv.reshape(*qkv.shape[:4], -1), 3, 0)
    out = lsd._tpu_attention(*parts, bias, grouping=grouping, scale=0.5, interpret=True)
    return out.reshape(cotangent.shape)

  def groups(qkv, bias):
    return grouping.crop(lsd._group_attention(grouping.pad(qkv), bias, grouping, 0.5))

  def run(form):
    out, pull_back = jax.vjp(form, *arguments)
    return out, *pull_back(cotangent)

  return run(groups), interpret_jit(functools.partial(run, strips))()


@pytest.mark.parametrize(
  ('size', 'kind', 'group', 'interval'),
  [
    ((8, 8), 'short', 4, 1),
    ((12, 8), 'long', 2, 2),
    ((6, 12), 'long', 3, 2),
    ((5, 5), 'short', 5, 1),
    ((7, 6), 'short', 4, 1),
    # In the last region of rows every other strip is nothing but padding.
    ((9, 7), 'long', 2, 2),
  ],
  ids=_ids,
)
def test_strips_of_the_map_attend_as_groups(size, kind, group, interval):
  grouping = lsd.find_grouping(size, kind, group, interval)
  groups, strips = _group_and_strip_attention(grouping, batch=2)
  for wanted, got in zip(groups, strips, strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_strips_on_eight_devices_give_the_gradients_of_one():
  grouping = lsd.find_grouping((6, 12), 'long', 3, 2)
  with jax.set_mesh(parallel.create_mesh(data=4, tensor=2)):
    groups, strips = _group_and_strip_attention(grouping, 4, interpret_jit=jax.jit)
  for wanted, got in zip(groups, strips, strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-5)


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


def test_projections_have_the_parameters_of_a_dense_layer():
  x = _draw(1, 4, 4, 8)
  params = lsd.LongShortDistanceAttention(2, group_size=4).init(jax.random.key(0), x)['params']
  assert params['qkv']['kernel'].shape == (8, 3, 2, 4)
  assert params['qkv']['bias'].shape == (3, 2, 4)
  out = lsd.project(x, params['qkv']['kernel'], params['qkv']['bias'] + 1)
  expected = np.einsum('bhwc,cind->bhwind', x, params['qkv']['kernel']) + 1
  np.testing.assert_allclose(out, expected, atol=1e-6)


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
