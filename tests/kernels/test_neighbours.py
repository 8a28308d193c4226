"""Sparse convolutions against dense ones; padding; gradients without scatter."""

import functools

import jax
from jax import export
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from crossattn_jax import kernels, parallel
from crossattn_jax.geometry import points
from crossattn_jax.kernels.neighbours import api, reference, tpu, tpu_gathers

SIDE, CHANNELS, FEATURES = 6, 3, 4
IMPLEMENTATIONS = ('reference', 'xla')
TOLERANCE = 1e-13


def scene(seed, count, padded):
  """Cells in no order, their tables, both levels padded with rows that hold nothing."""
  rng = np.random.default_rng(seed)
  cells = rng.permutation(np.argwhere(np.ones((SIDE,) * 3)))[:count]
  coarse = points.coarsen(cells)
  tables = {
    'table': points.neighbours(cells),
    'children': coarse.children,
    'place': 8 * coarse.parent + coarse.octant,
  }

  def pad(x, size):
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])], constant_values=-1)

  tables = {k: pad(v, padded[k == 'children']) for k, v in tables.items()}
  return cells, coarse.cells, tables


def scenes(padded=(90, 40)):
  """Two scenes of different sizes: cells, coarse cells, tables of both with a batch axis."""
  made = [scene(0, 80, padded), scene(1, 50, padded)]
  tables = {name: jnp.stack([t[name] for *_, t in made]) for name in made[0][2]}
  return [(fine, coarse) for fine, coarse, _ in made], tables


def values(rows, cells, channels=CHANNELS, seed=0, fill=np.nan):
  """Random features of cells, `fill` in padding."""
  rng = np.random.default_rng(seed)
  x = np.full((len(cells), rows, channels), fill)
  for index, cell in enumerate(cells):
    x[index, : len(cell)] = rng.standard_normal((len(cell), channels))
  return jnp.asarray(x)


def operation(name, tables, implementation='auto'):
  if name == 'sparse_convolution':
    arrays = (tables['table'],)
  else:
    arrays = tables['children'], tables['place']
  function = getattr(kernels, name)
  return jax.jit(lambda x, kernel: function(x, kernel, *arrays, implementation=implementation))


def dense(name, x, kernel, fine, coarse):
  """The same by a dense convolution over all cells of the box, for one scene."""
  window = round(len(kernel) ** (1 / 3))
  weights = kernel.reshape(window, window, window, *kernel.shape[1:]).transpose(2, 1, 0, 3, 4)
  given, wanted = (coarse, fine) if name == 'sparse_upsampling' else (fine, coarse)
  wanted = fine if name == 'sparse_convolution' else wanted
  scale = {'sparse_convolution': (1, 1), 'sparse_downsampling': (1, 2), 'sparse_upsampling': (2, 1)}
  given, wanted = given // scale[name][0], wanted // scale[name][1]
  grid = np.zeros((1, *(SIDE // scale[name][0],) * 3, x.shape[-1]))
  grid[0][tuple(given.T)] = x[: len(given)]
  if name == 'sparse_upsampling':
    flipped = weights[::-1, ::-1, ::-1]  # JAX correlates what is dilated.
    out = jax.lax.conv_transpose(grid, flipped, (2,) * 3, 'VALID', dimension_numbers=NUMBERS)
  else:
    stride = (2,) * 3 if name == 'sparse_downsampling' else (1,) * 3
    out = jax.lax.conv_general_dilated(grid, weights, stride, 'SAME', dimension_numbers=NUMBERS)
  return np.asarray(out)[0][tuple(wanted.T)]


NUMBERS = ('NXYZC', 'XYZIO', 'NXYZC')
CASES = {'sparse_convolution': 27, 'sparse_downsampling': 8, 'sparse_upsampling': 8}


def operands(name, cells):
  of_input = [coarse if name == 'sparse_upsampling' else fine for fine, coarse in cells]
  x = values(40 if name == 'sparse_upsampling' else 90, of_input)
  kernel = np.random.default_rng(9).standard_normal((CASES[name], CHANNELS, FEATURES))
  return x, jnp.asarray(kernel)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('name', CASES)
def test_equals_a_dense_convolution(name, implementation):
  with jax.enable_x64(True):
    cells, tables = scenes()
    x, kernel = operands(name, cells)
    out = np.asarray(operation(name, tables, implementation)(x, kernel))
    for index, (fine, coarse) in enumerate(cells):
      expected = dense(name, np.asarray(x[index]), np.asarray(kernel), fine, coarse)
      np.testing.assert_allclose(out[index, : len(expected)], expected, atol=TOLERANCE)
      np.testing.assert_array_equal(out[index, len(expected) :], 0)


@pytest.mark.parametrize('name', CASES)
def test_gradients_are_those_of_the_definition_without_scatter_or_padding(name):
  with jax.enable_x64(True):
    cells, tables = scenes()
    x, kernel = operands(name, cells)
    is_row = ~jnp.isnan(x)
    out, pull_back = jax.vjp(operation(name, tables, 'reference'), jnp.where(is_row, x, 0), kernel)
    cotangent = np.random.default_rng(3).standard_normal(out.shape)
    expected = pull_back(jnp.asarray(cotangent))
    sizes = [len(coarse if name == 'sparse_downsampling' else fine) for fine, coarse in cells]
    for scene_cotangent, size in zip(cotangent, sizes, strict=True):
      scene_cotangent[size:] = np.nan

    def step(x, kernel, cotangent):
      return jax.vjp(operation(name, tables), x, kernel)[1](cotangent)

    of_x, of_kernel = jax.jit(step)(x, kernel, cotangent)
    np.testing.assert_allclose(of_kernel, expected[1], atol=TOLERANCE)
    np.testing.assert_allclose(
      jnp.where(is_row, of_x, 0), jnp.where(is_row, expected[0], 0), atol=TOLERANCE
    )
    assert 'scatter' not in jax.jit(step).lower(x, kernel, cotangent).as_text()


def test_blocks_of_rows_make_no_difference(monkeypatch):
  with jax.enable_x64(True):
    cells, tables = scenes()
    x, kernel = operands('sparse_convolution', cells)
    x = jnp.nan_to_num(x)

    def step(x, kernel):
      return jax.vjp(operation('sparse_convolution', tables), x, kernel)[1](
        x[..., :1] + kernel[0, 0]
      )

    whole = step(x, kernel)
    monkeypatch.setattr('crossattn_jax.kernels.neighbours.xla.BLOCK', 32)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=TOLERANCE), step(x, kernel), whole
    )


@pytest.mark.parametrize('name', CASES)
def test_gathers_of_tpus_are_the_definition_and_its_gradients(name, monkeypatch):
  monkeypatch.setattr(api, '_GATHERS', (tpu_gathers, tpu_gathers))
  monkeypatch.setattr(tpu_gathers, 'BLOCK', 32)
  test_equals_a_dense_convolution(name, 'xla')
  test_gradients_are_those_of_the_definition_without_scatter_or_padding(name)


def test_bfloat16_sums_in_float32():
  cells, tables = scenes()
  x, kernel = operands('sparse_convolution', cells)
  x, kernel = jnp.nan_to_num(x).astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
  out = operation('sparse_convolution', tables)(x, kernel)
  exact = operation('sparse_convolution', tables)(x.astype(jnp.float32), kernel.astype(jnp.float32))
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_scenes_stay_on_their_devices():
  cells, tables = scenes()
  x, kernel = operands('sparse_convolution', cells)
  x, table = (jnp.tile(x, (4, 1, 1)) for x in (jnp.nan_to_num(x), tables['table']))

  def step(x, kernel, table):
    out, pull_back = jax.vjp(operation('sparse_convolution', {'table': table}), x, kernel)
    return out, pull_back(out)

  expected = jax.jit(step)(x, kernel, table)
  mesh = parallel.create_mesh(data=8)
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  arrays = jax.device_put(x, sharding), kernel, jax.device_put(table, sharding)
  with jax.set_mesh(mesh):
    program = jax.jit(step).lower(*arrays).compile()
  assert 'all-gather' not in program.as_text()
  got = program(*arrays)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4), got, expected)


def test_is_exported_for_any_number_of_scenes():
  _, tables = scenes()
  (batch,) = export.symbolic_shape('b')
  shapes = [(batch, 90, CHANNELS), (27, CHANNELS, FEATURES), (batch, 27, 90)]
  dtypes = jnp.float32, jnp.float32, jnp.int32
  structs = [jax.ShapeDtypeStruct(*x) for x in zip(shapes, dtypes, strict=True)]
  program = export.export(jax.jit(kernels.sparse_convolution))(*structs)
  x, kernel = jnp.ones((2, 90, CHANNELS)), jnp.ones(shapes[1])
  table = tables['table'].astype(jnp.int32)
  expected = CHANNELS * (table >= 0).sum(axis=1)
  np.testing.assert_allclose(program.call(x, kernel, table)[..., 0], expected)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'x': jnp.ones((90, 3))}, r'x must be \[batch, cells, channels\], got \(90, 3\)'),
    ({'kernel': jnp.ones((27, 2, 4))}, r'kernel must be \[window, 3, features\]'),
    ({'kernel': jnp.ones((8, 3, 4)), 'table': jnp.zeros((2, 8, 90), int)}, 'a window is odd'),
    ({'table': jnp.zeros((2, 27, 80), int)}, r'table must be \(2, 27, 90\) .* \(2, 27, 80\)'),
    ({'table': jnp.zeros((2, 27, 90))}, 'table must be integers, got float32'),
    ({'implementation': 'fast'}, "unknown implementation 'fast'; there are auto, reference, xla"),
  ],
)
def test_what_does_not_go_together_is_said(changes, message):
  arguments = {'x': jnp.ones((2, 90, 3)), 'kernel': jnp.ones((27, 3, 4))}
  arguments |= {'table': jnp.zeros((2, 27, 90), int)} | changes
  with pytest.raises(ValueError, match=f'sparse_convolution: .*{message}'):
    kernels.sparse_convolution(**arguments)


def sorted_table(seed, count, padded):
  """The table of random cells in the order of x, y and z, `[27, padded]`."""
  rng = np.random.default_rng(seed)
  places = np.argwhere(np.ones((SIDE,) * 3))
  table = points.neighbours(places[np.sort(rng.permutation(len(places))[:count])])
  return np.pad(table, ((0, 0), (0, padded - count)), constant_values=-1)


@pytest.mark.extended
def test_kernels_of_tpus_are_the_definition_and_its_gradients(monkeypatch):
  # Two planes of channels, several copies and tiles to a scene, and the last one not whole.
  monkeypatch.setattr(tpu, '_LANES', 4)
  monkeypatch.setattr(tpu, '_COPIED', 32)
  table = jnp.asarray(np.stack([sorted_table(0, 61, 70), sorted_table(1, 40, 70)]))
  is_row = (table[:, 13] >= 0)[..., None]
  rng = np.random.default_rng(2)
  x, cotangent = (jnp.asarray(rng.standard_normal((2, 70, width)), jnp.float32) for width in (6, 3))
  kernel = jnp.asarray(rng.standard_normal((27, 6, 3)), jnp.float32)

  @jax.jit
  def compare(x, kernel, cotangent):
    clean = jnp.where(is_row, x, 0), kernel
    expected, pull_back = jax.vjp(lambda *a: reference.convolution(*a, table), *clean)
    expected = expected, *pull_back(jnp.where(is_row, cotangent, 0))
    x, cotangent = (jnp.where(is_row, values, jnp.nan) for values in (x, cotangent))
    options = {'tile': 8, 'interpret': True}
    result = tpu.convolution(x, kernel, table, **options)
    return (result, *tpu.gradients(x, kernel, table, cotangent, **options)), expected

  with jax.default_matmul_precision('highest'):
    results, expected = compare(x, kernel, cotangent)
  for result, of_definition in zip(results, expected, strict=True):
    np.testing.assert_allclose(result, of_definition, atol=2e-5)


def test_kernels_of_tpus_know_cells_that_are_not_sorted():
  first, bits = tpu._columns(jnp.asarray(sorted_table(0, 61, 64))[None])
  assert int(first.min()) == 0
  assert not (bits >> 3).any()
  _, tables = scenes()
  unsorted = (tpu._columns(tables['table'])[1] >> 3).any(axis=(1, 2))
  assert unsorted.all()


def test_cells_that_are_not_sorted_are_left_to_gathers_where_it_can_be_told():
  made = {'sorted': sorted_table(0, 61, 64)[None], 'not': np.asarray(scenes()[1]['table'])[:1]}
  for order, table in made.items():
    call = functools.partial(kernels.sparse_convolution, table=table)
    x = jax.ShapeDtypeStruct((1, table.shape[2], 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((27, 8, 8), jnp.float32)
    program = export.export(jax.jit(call), platforms=['tpu'])(x, kernel).mlir_module()
    assert ('tpu_custom_call' in program) == (order == 'sorted')
  with pytest.raises(ValueError, match="'tpu' wants sorted cells; sort them, or take 'xla'"):
    jax.eval_shape(functools.partial(call, implementation='tpu'), x, kernel)


def test_scenes_that_do_not_fit_in_the_memory_of_a_tpu_are_left_to_gathers():
  assert tpu.fits(98304, (27, 128, 96))
  assert not tpu.fits(400_000, (27, 128, 96))
  assert not tpu.fits(1024, (125, 3, 32))
  x = jax.ShapeDtypeStruct((1, 400_000, 4), jnp.float32)
  kernel = jax.ShapeDtypeStruct((27, 4, 4), jnp.float32)
  table = jax.ShapeDtypeStruct((1, 27, 400_000), jnp.int32)
  call = functools.partial(kernels.sparse_convolution, implementation='tpu')
  with pytest.raises(ValueError, match=r"'tpu' keeps a scene's cells in VMEM .* take 'xla'"):
    jax.eval_shape(call, x, kernel, table)


def test_the_platform_of_the_program_chooses_the_form():
  x = jax.ShapeDtypeStruct((1, 256, 32), jnp.bfloat16)
  kernel = jax.ShapeDtypeStruct((27, 32, 32), jnp.bfloat16)
  table = jax.ShapeDtypeStruct((1, 27, 256), jnp.int32)
  exported = export.export(jax.jit(kernels.sparse_convolution), platforms=['tpu'])
  assert 'tpu_custom_call' in exported(x, kernel, table).mlir_module()
  exported = export.export(jax.jit(kernels.sparse_convolution), platforms=['cpu'])
  assert 'tpu_custom_call' not in exported(x, kernel, table).mlir_module()
