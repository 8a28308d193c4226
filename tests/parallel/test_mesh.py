"""Meshes take the sizes asked for, and batches land on them row by row."""

import jax
import numpy as np
import pytest

from crossattn_jax import parallel


def test_free_axis_takes_the_rest():
  mesh = parallel.create_mesh(-1, 2, 2)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2, 'sequence': 1}


@pytest.mark.parametrize('sizes', [(3, 1), (-1, 3), (-1, -1), (0, 1), (4, 1)])
def test_sizes_that_do_not_fit_are_refused(sizes):
  with pytest.raises(ValueError, match=rf'mesh data={sizes[0]}, fsdp={sizes[1]}.*-1'):
    parallel.create_mesh(*sizes)


def test_global_batch_splits_rows_over_data_and_fsdp():
  mesh = parallel.create_mesh(2, 2, 2)
  rows = np.arange(16).reshape(8, 2)
  batch = parallel.global_batch({'x': rows}, mesh)['x']
  np.testing.assert_array_equal(batch, rows)
  assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 2)}


def test_one_process_loads_every_row():
  assert parallel.process_block(parallel.create_mesh(2, 2, 2)) == (0, 1)


def test_constrain_splits_an_activation_and_leaves_odd_sizes_whole():
  mesh = parallel.create_mesh(4, 1, 2)
  x = np.zeros((8, 7, 4, 3), np.float32)
  f = jax.jit(lambda x: parallel.constrain(x, 'batch', 'tokens', 'heads', 'channels'))
  with jax.set_mesh(mesh):
    y = f(x)
    odd = f(x[:, :, :3])
  assert {shard.data.shape for shard in y.addressable_shards} == {(2, 7, 2, 3)}
  assert {shard.data.shape for shard in odd.addressable_shards} == {(2, 7, 3, 3)}


def test_heads_side_by_side_are_split_between_heads_only():
  x = np.zeros((8, 7, 24), np.float32)
  with jax.set_mesh(parallel.create_mesh(4, 1, 2)):
    split, whole = (
      jax.jit(lambda x, heads=heads: parallel.constrain(x, 'batch', 'tokens', ('heads', heads)))(x)
      for heads in (4, 3)
    )
  assert {shard.data.shape for shard in split.addressable_shards} == {(2, 7, 12)}
  assert {shard.data.shape for shard in whole.addressable_shards} == {(2, 7, 24)}


def test_a_function_of_shards_sees_whole_heads():
  seen = []

  def double(x, bias):
    seen.append((x.shape, bias.shape))
    return 2 * x

  x, bias = np.arange(8 * 24.0).reshape(8, 24), np.zeros((4, 5))
  names = ('batch', ('heads', 4))
  with jax.set_mesh(parallel.create_mesh(4, 1, 2)):
    out = jax.jit(
      lambda x, bias: parallel.map_shards(
        double, x, bias, names=(names, ('heads', None)), out_names=names
      )
    )(x, bias)
  assert seen == [((2, 12), (2, 5))]
  np.testing.assert_array_equal(out, 2 * x)


def test_a_mapped_function_sees_its_own_examples_and_heads():
  seen = []
  mesh = parallel.create_mesh(2, 2, 2)

  def attend(query, key):
    seen.append(query.shape)
    return query + key

  with jax.set_mesh(mesh):
    tokens = ('batch', None, None, 'heads', None)
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 6, 2))
    out = jax.jit(
      lambda x: parallel.map_shards(attend, x, x, names=(tokens, tokens), out_names=tokens)
    )(x)
    odd = parallel.map_shards(
      attend, x[:6, ..., :3, :], x[:6, ..., :3, :], names=(tokens, tokens), out_names=tokens
    )
  assert seen[0] == (2, 4, 4, 3, 2)
  assert seen[1] == (3, 4, 4, 3, 2)  # six examples over two of the axes' four; three heads stay
  np.testing.assert_array_equal(out, 2 * x)
  np.testing.assert_array_equal(odd, 2 * x[:6, ..., :3, :])


def test_constrain_does_nothing_without_a_mesh():
  x = np.ones((3, 2), np.float32)
  np.testing.assert_array_equal(parallel.constrain(jax.numpy.asarray(x), 'batch', 'channels'), x)


@pytest.mark.parametrize(
  ('names', 'message'),
  [(('batch',), '1 logical'), (('batch', 'w'), "'w'"), (('batch', ('w', 2)), "'w'")],
)
def test_constrain_refuses_wrong_names(names, message):
  with pytest.raises(ValueError, match=message):
    parallel.constrain(jax.numpy.zeros((2, 2)), *names)


def test_processes_that_share_rows_load_the_same_block():
  class Device:
    def __init__(self, process_index):
      self.process_index = process_index

  class Mesh:
    def __init__(self, processes, shape):
      self.devices = np.vectorize(Device, otypes=[object])(np.array(processes)).reshape(
        *shape.values()
      )
      self.shape = shape

  apart = Mesh([0, 0, 1, 1], {'data': 4, 'fsdp': 1, 'tensor': 1, 'sequence': 1})
  assert [parallel.process_block(apart, p) for p in (0, 1)] == [(0, 2), (1, 2)]
  shared = Mesh([0, 1, 0, 1], {'data': 2, 'fsdp': 1, 'tensor': 2, 'sequence': 1})
  assert [parallel.process_block(shared, p) for p in (0, 1)] == [(0, 1), (0, 1)]
  uneven = Mesh([0, 0, 0, 1], {'data': 4, 'fsdp': 1, 'tensor': 1, 'sequence': 1})
  with pytest.raises(ValueError, match='unevenly'):
    parallel.process_block(uneven, 0)


def test_each_device_sorts_draws_and_loops_for_its_own_examples():
  mesh = parallel.create_mesh()
  rows = jax.random.normal(jax.random.key(0), (8, 50))
  keys = jax.random.split(jax.random.key(1), 8)

  def of_example(row, key):
    halved = jax.lax.while_loop(lambda x: x.max() > 0.1, lambda x: x / 2, row)
    return {'top': jax.lax.top_k(row, 3), 'draw': jax.random.uniform(key, (2,)), 'loop': halved}

  expected = jax.jit(jax.vmap(of_example))(rows, keys)
  with jax.set_mesh(mesh):
    args = jax.device_put((rows, keys), parallel.batch_sharding(mesh))
    compiled = jax.jit(lambda *args: parallel.map_batch(of_example, *args)).lower(*args).compile()
    found = compiled(*args)
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_array_equal(a, b)
  for word in ('all-gather', 'all-reduce'):
    assert word not in compiled.as_text()
