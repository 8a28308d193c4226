import functools
import itertools
import pathlib
import types

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import kernels, parallel
from crossattn_jax.kernels.criss_cross import api, gpu, tpu
from crossattn_jax.parity import cases, replay
from crossattn_jax.parity.systems.ccnet import modules as ccnet_modules
from crossattn_jax.training import export

REFERENCE = pathlib.Path(__file__).parents[1] / 'reference/ccnet'
ON_GPU = jax.default_backend() == 'gpu'

CHANNELS_FILL_LANES = (1, 17, 20, 64, 256)
# batch, positions, query channels, value channels
SHAPES = [
  (2, 9, 7, 8, 24),
  (1, 1, 11, 2, 16),
  (1, 6, 1, 2, 16),
  (1, 1, 1, 2, 4),
  CHANNELS_FILL_LANES,
  # A video.
  (2, 3, 5, 6, 4, 8),
]
# What runs by default; interpreted kernels take seconds each.
QUICK = {
  ('reference', 'float32'): SHAPES[:1],
  ('reference', 'bfloat16'): SHAPES[-1:],
  ('xla', 'float64'): [SHAPES[0], SHAPES[3], SHAPES[5]],
  ('xla', 'float32'): SHAPES[:1],
  ('xla', 'bfloat16'): SHAPES[-1:],
  ('tpu', 'float32'): SHAPES[:1],
  ('tpu', 'bfloat16'): SHAPES[4:5],
  ('gpu', 'float32'): SHAPES[:1],
  ('gpu', 'bfloat16'): [],
}
# Relative errors against float64.
BOUNDS = {'float64': 1e-12, 'float32': 2e-6, 'bfloat16': 1.5e-2}


def arguments(shape, dtype, seed=0):
  """Query, key, value and a cotangent."""
  *positions, key_channels, channels = shape
  rng = np.random.default_rng(seed)
  widths = (key_channels, key_channels, channels, channels)
  # Scores of about one standard deviation, else bfloat16 itself decides the result.
  scales = (key_channels**-0.5, 1, 1, 1)
  return tuple(
    jnp.asarray(scale * rng.standard_normal((*positions, width)), dtype)
    for width, scale in zip(widths, scales, strict=True)
  )


def interpreted(implementation):
  return implementation == 'tpu' or (implementation == 'gpu' and not ON_GPU)


def value_and_vjp(attend, query, key, value, cotangent):
  out, pull_back = jax.vjp(attend, query, key, value)
  return out, *pull_back(cotangent)


@functools.cache
def expected(shape, dtype):
  """Of the same rounded arguments, by the definition in float64."""
  with jax.enable_x64(True):
    exact = tuple(x.astype(jnp.float64) for x in arguments(shape, dtype))
    attend = functools.partial(kernels.criss_cross_attention, implementation='reference')
    return jax.device_get(jax.jit(functools.partial(value_and_vjp, attend))(*exact))


def relative_error(actual, exact):
  actual = np.asarray(actual, np.float64)
  # A single position meets itself alone: its query has no gradient, and the error no scale.
  return np.linalg.norm(actual - exact) / (np.linalg.norm(exact) or 1)


def table():
  rows = []
  for (implementation, dtype), quick in QUICK.items():
    for shape in SHAPES:
      marks = [] if shape in quick else [pytest.mark.extended]
      if (implementation, dtype) == ('gpu', 'bfloat16') and shape != CHANNELS_FILL_LANES:
        # DotThunk: "Unsupported element type BF16 x BF16 = F32".
        marks.append(pytest.mark.skipif(not ON_GPU, reason='CPUs lack these products in bfloat16'))
      name = f'{implementation}-{dtype}-{shape}'
      rows.append(pytest.param(shape, implementation, dtype, marks=marks, id=name))
  return rows


@pytest.mark.parametrize(('shape', 'implementation', 'dtype'), table())
def test_value_and_gradients_match_the_definition(shape, implementation, dtype):
  attend = functools.partial(
    api.attention, implementation=implementation, interpret=interpreted(implementation)
  )
  with jax.enable_x64(dtype == 'float64'), jax.default_matmul_precision('highest'):
    inputs = arguments(shape, dtype)
    actual = jax.jit(functools.partial(value_and_vjp, attend))(*inputs)
  for name, array, exact in zip(
    ('out', 'query', 'key', 'value'), actual, expected(shape, dtype), strict=True
  ):
    assert array.dtype == dtype, name
    assert array.shape == exact.shape, name
    assert relative_error(array, exact) < BOUNDS[dtype], name


def recorded():
  """The cases on both kernels: the smallest on one by default, the largest in no hurry."""
  tiers = {
    'cca_core_9x7_attention': (),
    'cca_core_large_logits_10x14': pytest.mark.extended,
    'cca_core_24x33': pytest.mark.extended,
    'cca_core_97x97': pytest.mark.slow,
  }
  for (name, tier), implementation in itertools.product(tiers.items(), ('tpu', 'gpu')):
    marks = tier or (pytest.mark.extended if implementation == 'gpu' else ())
    yield pytest.param(name, implementation, marks=marks, id=f'{name}-{implementation}')


@pytest.mark.parametrize(('name', 'implementation'), recorded())
def test_kernels_replay_the_recorded_cases(name, implementation):
  case = cases.read_case(REFERENCE / f'{name}.json')
  adapter = ccnet_modules.attention_adapter(implementation, interpreted(implementation))
  rows = replay.judge(case, adapter, 'float32', replay.run_case(case, adapter, 'float32'))
  assert {row.array for row in rows} >= {'out/out', 'out/lse', 'grad_input/q', 'grad_input/v'}
  assert all(row.passed for row in rows), rows


def test_many_lines_are_taken_in_chunks():
  shape = (1, 3, 800, 2, 4)  # The scores of one row are more than one chunk may have.
  attend = functools.partial(kernels.criss_cross_attention, implementation='xla')
  inputs = arguments(shape, 'float32')
  actual = jax.jit(functools.partial(value_and_vjp, attend))(*inputs)
  for array, exact in zip(actual, expected(shape, 'float32'), strict=True):
    assert relative_error(array, exact) < 1e-5
  text = jax.jit(attend).lower(*inputs[:3]).as_text()
  assert 'x800x800xf32' not in text.replace('1x800x800xf32', '')


@pytest.mark.parametrize(
  ('shape', 'dtype'),
  [
    ((1, 2, 256, 4, 8), 'float32'),
    pytest.param((1, 384, 3, 4, 8), 'bfloat16', marks=pytest.mark.extended),
  ],
)
def test_long_lines_are_taken_by_blocks_of_queries(shape, dtype, monkeypatch):
  monkeypatch.setattr(tpu, '_LONGEST_AT_ONCE', 64)
  monkeypatch.setattr(tpu, '_QUERIES', 128)
  attend = functools.partial(api.attention, implementation='tpu', interpret=True)
  actual = jax.jit(functools.partial(value_and_vjp, attend))(*arguments(shape, dtype))
  for array, exact in zip(actual, expected(shape, dtype), strict=True):
    assert relative_error(array, exact) < BOUNDS[dtype]


def test_gradients_pass_rematerialisation():
  inputs = arguments(SHAPES[0], 'float32')
  remat = jax.checkpoint(kernels.criss_cross_attention)
  actual = jax.jit(functools.partial(value_and_vjp, remat))(*inputs)
  for array, exact in zip(actual, expected(SHAPES[0], 'float32'), strict=True):
    assert relative_error(array, exact) < BOUNDS['float32']


@pytest.mark.extended
def test_a_kernel_runs_inside_shard_map():
  inputs = arguments((4, 3, 5, 2, 4), 'float32')
  attend = functools.partial(api.attention, implementation='tpu', interpret=True)
  mesh = parallel.create_mesh(devices=jax.devices()[:4])
  spec = jax.sharding.PartitionSpec('data')
  split = jax.jit(
    jax.shard_map(
      functools.partial(value_and_vjp, attend),
      mesh=mesh,
      in_specs=spec,
      out_specs=spec,
      # The interpreter mixes what varies over devices with what does not.
      check_vma=False,
    )
  )
  for array, exact in zip(split(*inputs), expected((4, 3, 5, 2, 4), 'float32'), strict=True):
    assert relative_error(array, exact) < BOUNDS['float32']


@pytest.mark.parametrize('dtype', [pytest.param('float32', marks=pytest.mark.extended), 'bfloat16'])
def test_gpu_kernels_lower_to_triton_without_a_gpu(monkeypatch, dtype):
  # Nor does it matter what the GPU of this machine, if there is one, has.
  monkeypatch.setattr(gpu, '_shared_bytes_here', lambda: gpu.SHARED_BYTES)
  shape = (2, 97, 97, 64, 512)
  structs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arguments(shape, dtype)]
  attend = functools.partial(kernels.criss_cross_attention, implementation='auto')
  lower = jax.export.export(
    jax.jit(functools.partial(value_and_vjp, attend)),
    platforms=['cuda'],
    disabled_checks=[jax.export.DisabledSafetyCheck.custom_call('__gpu$xla.gpu.triton')],
  )
  with export.lowering_for('cuda'):
    exported = lower(*structs)
  # A forward kernel for each axis, and one for all gradients or, in float32, for each.
  gradients = {'bfloat16': 1, 'float32': 3}[dtype]
  assert exported.mlir_module().count('@__gpu$xla.gpu.triton') == 2 * (1 + gradients)
  for axis in (1, 2):
    tiling = gpu.Tiling.of(structs[0], structs[2], axis, True)
    assert tiling.shared_bytes <= 99 * 2**10
    assert (tiling.whole_lines() is None) == (dtype == 'float32')


@pytest.mark.parametrize(('capability', 'fits'), [('8.0', False), ('8.9', False), ('9.0', True)])
def test_a_gpu_with_more_shared_memory_makes_all_gradients_of_float32_lines_at_once(
  monkeypatch, capability, fits
):
  device = types.SimpleNamespace(compute_capability=capability)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(jax, 'local_devices', lambda: [device])
  query, value = (jax.ShapeDtypeStruct((4, 97, 97, size), jnp.float32) for size in (64, 512))
  lines = gpu.Tiling.of(query, value, 1, True).whole_lines()
  assert (lines is not None) == fits
  assert not fits or lines.line_bytes <= 227 * 2**10


@pytest.mark.parametrize(
  ('implementation', 'shape'),
  # Queries too wide for shared memory; a line too long for VMEM.
  [('gpu', (1, 8, 8, 4096)), ('tpu', (1, 4, 2**15, 64))],
)
def test_what_a_kernel_has_no_room_for_is_left_to_xla(implementation, shape):
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  attend = functools.partial(kernels.criss_cross_attention, implementation=implementation)
  program = jax.make_jaxpr(functools.partial(value_and_vjp, attend))(x, x, x, x)
  # The columns of the long map are short.
  assert str(program).count('pallas_call[') == {'gpu': 0, 'tpu': 2}[implementation]


@pytest.mark.parametrize(
  ('shapes', 'message'),
  [
    (((2, 3, 4), (2, 3, 4), (2, 3, 4)), r'query must be \[batch, height, width, channels\]'),
    (((1, 2, 3, 4), (1, 2, 4, 4), (1, 2, 3, 4)), r'key .* must have the shape of query'),
    (((1, 2, 3, 4), (1, 2, 3, 4), (1, 3, 3, 4)), r'value .* must agree in all but the channels'),
    (((1, 0, 3, 4), (1, 0, 3, 4), (1, 0, 3, 4)), r'query is empty'),
  ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(shapes, message):
  with pytest.raises(ValueError, match=message):
    kernels.criss_cross_attention(*(jnp.zeros(shape) for shape in shapes))


def test_dtypes_that_do_not_fit_are_refused_by_name():
  x = jnp.zeros((1, 2, 3, 4))
  with pytest.raises(ValueError, match='value is bfloat16 and query float32'):
    kernels.criss_cross_attention(x, x, x.astype(jnp.bfloat16))
  with pytest.raises(ValueError, match='query must be floating, got int32'):
    kernels.criss_cross_attention(*(x.astype(jnp.int32),) * 3)


TOPOLOGIES = {
  'v4:2x2x1': {'chip_config_name': 'megacore'},
  'v5e:2x2': {},
  'v5p:2x2x1': {'chip_config_name': 'megacore'},
  'v6e:2x2': {},
}
# batch, height, width, channels of query and key, of value.
COMPILED = [(2, 97, 97, 64, 512), (1, 128, 256, 64, 512), (1, 64, 65, 64, 512)]
QUICK_COMPILED = {
  ('v4:2x2x1', COMPILED[2], 4, 'forward'),
  ('v5e:2x2', COMPILED[0], 1, 'gradient'),
  ('v5p:2x2x1', COMPILED[2], 4, 'forward'),
  ('v6e:2x2', COMPILED[2], 4, 'forward'),
}


def compiled_table():
  rows = []
  for row in itertools.product(TOPOLOGIES, COMPILED, (1, 4), ('forward', 'gradient')):
    marks = [] if row in QUICK_COMPILED else [pytest.mark.extended]
    rows.append(pytest.param(*row, marks=marks, id='-'.join(map(str, row))))
  return rows


@pytest.mark.tpu_aot
@pytest.mark.parametrize(('topology', 'shape', 'devices', 'direction'), compiled_table())
def test_kernels_compile_for_tpus_alone_and_inside_shard_map(topology, shape, devices, direction):
  chips = topologies.get_topology_desc(
    platform='tpu', topology_name=topology, **TOPOLOGIES[topology]
  ).devices
  mesh = parallel.create_mesh(devices=chips[:devices])
  batch, *rest = shape
  structs = [
    jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.batch_sharding(mesh))
    for x in jax.eval_shape(lambda: arguments((batch * devices, *rest), 'bfloat16'))
  ]
  attend = kernels.criss_cross_attention
  if direction == 'forward':
    function, structs = attend, structs[:3]
  else:
    function = functools.partial(value_and_vjp, attend)
  with jax.set_mesh(mesh):
    compiled = jax.jit(function).lower(*structs).compile()
  # Of rows and of columns.
  kernels_in = {'forward': 2, 'gradient': 4}[direction]
  assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == kernels_in
  inputs = sum(np.prod(x.shape) * x.dtype.itemsize for x in structs) / devices
  # Sums of the first axis, and copies into the order in which the kernels read.
  assert compiled.memory_analysis().temp_size_in_bytes <= 4 * inputs


# The width 6 does not divide into 4 devices, and height 9 stays whole; the last is a video.
@pytest.mark.parametrize('shape', [(2, 8, 6, 4, 8), (4, 9, 5, 4, 8), (2, 3, 8, 8, 4, 8)], ids=str)
def test_rows_on_several_devices_give_what_one_device_gives(shape):
  step = functools.partial(value_and_vjp, kernels.criss_cross_attention)
  with jax.enable_x64(True):
    inputs = arguments(shape, 'float64')
    with jax.set_mesh(parallel.create_mesh(data=2, sequence=4)):
      compiled = jax.jit(step).lower(*inputs).compile()
      actual = compiled(*inputs)
    wanted = expected(shape, 'float64')
  assert ('all-to-all' in compiled.as_text()) == (shape[-4] % 4 == 0)
  for a, b in zip(actual, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_the_definition_takes_rows_on_several_devices():
  query, key, value, _ = arguments((2, 8, 6, 4, 8), 'float32')
  attend = functools.partial(kernels.criss_cross_attention, implementation='reference')
  alone = attend(query, key, value)
  with jax.set_mesh(parallel.create_mesh(data=2, sequence=4)):
    np.testing.assert_allclose(jax.jit(attend)(query, key, value), alone, atol=1e-6)


def test_nothing_is_gathered_where_rows_are_on_several_devices():
  with jax.set_mesh(parallel.create_mesh(data=2, sequence=4)):
    split = [
      jax.device_put(x, jax.sharding.PartitionSpec(('data', 'fsdp'), 'sequence'))
      for x in arguments((2, 8, 8, 4, 8), 'float32')
    ]
    step = jax.jit(functools.partial(value_and_vjp, kernels.criss_cross_attention))
    assert 'all-gather' not in step.lower(*split).compile().as_text()


@pytest.mark.tpu_aot
def test_rows_over_chips_compile_to_kernels():
  chips = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices
  mesh = parallel.create_mesh(data=1, sequence=4, devices=chips)
  split = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'sequence'))
  structs = [
    jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)
    for x in jax.eval_shape(lambda: arguments((1, 32, 40, 64, 128), 'bfloat16'))
  ]
  with jax.set_mesh(mesh):
    compiled = jax.jit(kernels.criss_cross_attention).lower(*structs[:3]).compile()
  text = compiled.as_text()
  assert text.count('custom_call_target="tpu_custom_call"') == 2
  assert 'all-gather' not in text
