"""Sharding rules name the axes, and fall back where they do not divide."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import optax
import pytest

from crossattn_jax import parallel
from crossattn_jax.parallel import parameters


@pytest.fixture(scope='module')
def mesh():
  return parallel.create_mesh(2, 2, 2)


@pytest.mark.parametrize(
  ('path', 'shape', 'expected'),
  [
    # A rule of the library.
    ('encoder_0/block_0/attention/qkv/kernel', (128, 3, 4, 32), P('fsdp', None, 'tensor', None)),
    ('encoder_0/block_0/mlp/fc2/kernel', (512, 128), P('tensor', 'fsdp')),
    # Seven heads do not split over two devices: that axis alone is dropped.
    ('block/attention/qkv/kernel', (448, 3, 7, 64), P('fsdp', None, None, None)),
    # No rule: the largest dimension that divides.
    ('patch_embedding/kernel', (3, 12, 12, 384), P(None, None, None, 'fsdp')),
    ('patch_embedding/kernel', (3, 12, 128, 383), P(None, None, 'fsdp', None)),
    # Small parameters stay whole over fsdp but follow a tensor rule.
    ('norm/scale', (128,), P(None)),
    ('block/mlp/fc1/bias', (512,), P('tensor')),
  ],
)
def test_partition_spec(mesh, path, shape, expected):
  assert parameters.partition_spec(path, shape, mesh) == expected


def test_own_rules_come_first(mesh):
  rules = ((r'.*/fc1/kernel', (None, 'sequence')), *parallel.DEFAULT_RULES)
  spec = parameters.partition_spec('block/fc1/kernel', (6, 8), mesh, rules)
  assert spec == P(None, 'sequence')


def test_rule_with_an_unknown_axis_is_refused(mesh):
  with pytest.raises(ValueError, match=r"names axis 'model'; the mesh has .*'tensor'"):
    parameters.partition_spec('a/kernel', (8, 8), mesh, (('a/kernel', ('model', None)),))


def test_optimizer_state_is_sharded_like_its_parameters(mesh):
  params = {
    'block': {'fc1': {'kernel': jnp.zeros((256, 512)), 'bias': jnp.zeros((512,))}},
    'norm': {'scale': jnp.zeros((256,))},
  }
  state = jax.eval_shape(optax.adamw(1e-3).init, params)
  shardings = parallel.shardings_like(state, params, parallel.tree_shardings(params, mesh), mesh)
  adam = shardings[0]
  for moments in (adam.mu, adam.nu):
    assert moments['block']['fc1']['kernel'].spec == P('fsdp', 'tensor')
    assert moments['block']['fc1']['bias'].spec == P('tensor')
    assert moments['norm']['scale'].spec == P(None)
  assert adam.count.spec == P()
