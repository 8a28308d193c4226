"""Attention within groups: every form against attention to all tokens, others masked out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import kernels, parallel
from crossattn_jax.attention import dynamic_position_bias, long_short_distance
from crossattn_jax.kernels.grouped import cpu, reference, tpu

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
  bias = dynamic_position_bias.relative_position_bias(table)
  out = kernels.grouped_attention(*_maps(qkv), grouping, bias, num_heads=HEADS)
  return out.reshape(*out.shape[:3], HEADS, HEAD_DIM)


def _maps(qkv):
  """Query, key and value apart, their heads side by side."""
  return jnp.moveaxis(qkv.reshape(*qkv.shape[:4], -1), 3, 0)


@pytest.mark.parametrize(('size', 'kind', 'group_size', 'interval', 'options'), SIZES, ids=_ids)
def test_a_token_attends_to_its_group_and_to_nothing_else(
  size, kind, group_size, interval, options
):
  grouping = long_short_distance.find_grouping(size, kind, group_size, interval, **options)
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
  grouping = long_short_distance.find_grouping((7, 5), 'long', 2, 2)
  qkv, table = _inputs((8, 8), grouping.group)
  bias = dynamic_position_bias.relative_position_bias(table)

  def run(form):
    def loss(qkv, bias):
      return jnp.sum(jnp.sin(grouping.crop(form(*_maps(qkv), bias, **options))))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(qkv, bias)

  options = {'grouping': grouping, 'num_heads': HEADS, 'scale': 0.3}
  for ours, other in zip(
    jax.tree.leaves(run(cpu.grouped_attention)),
    jax.tree.leaves(run(reference.grouped_attention)),
    strict=True,
  ):
    np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('padded', [False, True])
def test_in_float32_values_and_gradients_are_those_of_float64(padded):
  size = (7, 5) if padded else (8, 8)
  grouping = long_short_distance.find_grouping(size, 'long', 2, 2)

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
  grouping = long_short_distance.find_grouping((7, 10), 'long', 3, 2, center_padding=True)
  groups = grouping.split(grouping.pad(x))
  assert groups.shape == (2, 16, 9, 3)
  np.testing.assert_array_equal(grouping.crop(grouping.merge(groups)), x)
  real = grouping.real_tokens()
  assert real.shape == (16, 9)
  assert real.sum() == 70


def _group_and_strip_attention(grouping, batch, interpret_jit=lambda f: f):
  """Result and gradients of both forms, the kernel interpreted."""
  tokens = grouping.group[0] * grouping.group[1]
  arguments = (
    _draw(batch, *grouping.size, 3, HEADS, HEAD_DIM),
    _draw(HEADS, tokens, tokens, seed=1),
  )
  cotangent = _draw(batch, *grouping.size, HEADS, HEAD_DIM, seed=2)

  def attend(form, qkv, bias):
    parts = (grouping.pad(x) for x in _maps(qkv))
    out = grouping.crop(form(*parts, bias, grouping=grouping, num_heads=HEADS, scale=0.5))
    return out.reshape(cotangent.shape)

  def run(form):
    out, pull_back = jax.vjp(functools.partial(attend, form), *arguments)
    return out, *pull_back(cotangent)

  strips = functools.partial(tpu.grouped_attention, interpret=True)
  return run(reference.grouped_attention), interpret_jit(functools.partial(run, strips))()


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
  grouping = long_short_distance.find_grouping(size, kind, group, interval)
  groups, strips = _group_and_strip_attention(grouping, batch=2)
  for wanted, got in zip(groups, strips, strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_strips_on_eight_devices_give_the_gradients_of_one():
  grouping = long_short_distance.find_grouping((6, 12), 'long', 3, 2)
  with jax.set_mesh(parallel.create_mesh(data=4, tensor=2)):
    groups, strips = _group_and_strip_attention(grouping, 4, interpret_jit=jax.jit)
  for wanted, got in zip(groups, strips, strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-5)
