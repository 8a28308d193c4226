"""Routed attention: every implementation against the definition, and for devices not here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import kernels
from crossattn_jax.kernels.routed import api, gpu, tpu, xla
from crossattn_jax.training import export
from crossattn_jax.training.compile import aot

# batch, regions, tokens, key_regions, key_tokens, heads, qk_width, width, top_k
SHAPES = {
  'one of everything': (1, 1, 1, 1, 1, 1, 8, 8, 1),
  'small map': (2, 4, 4, 4, 4, 2, 32, 32, 3),
  'all regions': (1, 4, 3, 4, 5, 2, 8, 16, 4),
  'many regions': (1, 2, 16, 24, 16, 2, 32, 32, 2),
  'odd regions': (1, 2, 5, 40, 7, 3, 24, 24, 2),
  'heads in two units': (1, 1, 80, 12, 16, 4, 32, 32, 1),
  'streamed': (1, 2, 16, 12, 16, 4, 64, 64, 2),
  'large regions': (1, 2, 128, 3, 128, 2, 32, 32, 1),
  'large regions, two keys': (1, 2, 128, 9, 128, 2, 64, 64, 2),
  'large regions, narrow': (1, 2, 128, 9, 128, 1, 32, 32, 2),
}
# The form that these shapes make the TPU implementation take.
TPU_FORMS = {
  'one of everything': 'dense',
  'small map': 'dense',
  'all regions': 'dense',
  'many regions': 'resident',
  'odd regions': 'resident',
  'heads in two units': 'resident',
  'streamed': 'streamed',
  'large regions': 'streamed',
  'large regions, two keys': 'streamed',
  'large regions, narrow': 'streamed',
}
FORMS = [
  ('reference', 'bfloat16'),
  ('xla', 'float64'),
  ('xla', 'float32'),
  ('xla', 'bfloat16'),
  ('tpu', 'float32'),
  ('tpu', 'bfloat16'),
  ('gpu', 'float32'),
  ('gpu', 'bfloat16'),
]
# Relative errors against float64.
BOUNDS = {'float64': 1e-12, 'float32': 2e-6, 'bfloat16': 1.5e-2}
# BiFormer-S: batch, regions, tokens, channels, heads, top_k.
STAGES = {
  '224 stage 1': (32, 49, 64, 64, 2, 1),
  '224 stage 2': (32, 49, 16, 128, 4, 4),
  '224 stage 3': (32, 49, 4, 256, 8, 16),
  '512x2048 stage 1': (1, 64, 1024, 64, 2, 1),
  '512x2048 stage 2': (1, 64, 256, 128, 4, 4),
  '512x2048 stage 3': (1, 64, 64, 256, 8, 16),
}
TOPOLOGIES = ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2']


# What runs by default; the rest of the table is extended.
QUICK = {
  ('reference', 'bfloat16'): ['small map'],
  ('xla', 'float64'): ['one of everything', 'small map', 'all regions', 'odd regions'],
  ('xla', 'bfloat16'): ['many regions'],
  ('tpu', 'float32'): list(SHAPES),
  ('tpu', 'bfloat16'): ['small map'],
  ('gpu', 'float32'): ['one of everything', 'odd regions'],
  ('gpu', 'bfloat16'): ['small map'],
}
# DotThunk: "Unsupported element type BF16 x BF16 = F32". The larger regions stream in bfloat16 too.
NOT_ON_CPUS = ('streamed', 'tpu', 'bfloat16')


def table():
  rows = []
  for form in FORMS:
    for name in SHAPES:
      marks = [] if name in QUICK.get(form, ()) else [pytest.mark.extended]
      if (name, *form) == NOT_ON_CPUS and jax.default_backend() == 'cpu':
        marks.append(pytest.mark.skip(reason='CPUs lack these products in bfloat16'))
      rows.append(pytest.param(name, *form, marks=marks, id=f'{name}-{form[0]}-{form[1]}'))
  return rows


@pytest.fixture(autouse=True)
def form(monkeypatch, request):
  """Makes the TPU implementation stream the shapes that would otherwise be slow to interpret."""
  name = getattr(request.node, 'callspec', None) and request.node.callspec.params.get('name')
  if TPU_FORMS.get(name) == 'streamed':
    monkeypatch.setattr(tpu, 'RESIDENT_BYTES', 0)
    monkeypatch.setattr(tpu, 'FORWARD_RESIDENT_BYTES', 0)


def arguments(shape, dtype, masked=False, per_head=False):
  """Query, key, value, routing, mask and a cotangent."""
  batch, regions, tokens, key_regions, key_tokens, heads, qk_width, width, top_k = shape
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  query = normal(batch, regions, tokens, heads * qk_width)
  key = normal(batch, key_regions, key_tokens, heads * qk_width)
  value = normal(batch, key_regions, key_tokens, heads * width)
  cotangent = normal(batch, regions, tokens, heads * width)
  # With replacement: some regions are named twice.
  routing = rng.integers(0, key_regions, (batch, *[heads] * per_head, regions, top_k))
  mask = None
  if masked:
    # The first query region sees no key at all.
    routing[..., 0, :] = 0
    mask = rng.random((batch, key_regions, key_tokens)) < 0.6
    mask[:, 0] = False
    mask = jnp.asarray(mask)
  return query, key, value, jnp.asarray(routing, jnp.int32), mask, cotangent


def value_and_vjp(attend, query, key, value, routing, mask, cotangent):
  out, pull_back = jax.vjp(lambda *x: attend(*x, routing, mask), query, key, value)
  return out, *pull_back(cotangent)


@functools.cache
def expected(shape, dtype, masked, per_head):
  """Of the same rounded arguments, by the definition in float64."""
  with jax.enable_x64(True):
    exact = [
      x if x is None or x.dtype in (bool, jnp.int32) else x.astype(jnp.float64)
      for x in arguments(shape, dtype, masked, per_head)
    ]
    attend = lambda query, key, value, routing, mask: kernels.routed_attention(
      query, key, value, routing, num_heads=shape[5], key_mask=mask, implementation='reference'
    )
    return jax.device_get(jax.jit(functools.partial(value_and_vjp, attend))(*exact))


def relative_error(actual, exact):
  actual = np.asarray(actual, np.float64)
  return np.linalg.norm(actual - exact) / max(np.linalg.norm(exact), 1)


def check(shape, implementation, dtype, masked=False, per_head=False):
  """Compares value and gradients with the definition's; returns the value."""
  heads, scale = shape[5], shape[6] ** -0.5
  if implementation == 'reference':
    attend = lambda *x: kernels.routed_attention(
      *x[:4], num_heads=heads, key_mask=x[4], implementation='reference'
    )
  else:
    interpret = implementation in ('tpu', 'gpu') and jax.default_backend() != implementation
    form = api.Form(implementation, interpret=interpret)
    attend = functools.partial(api.attend, form, num_heads=heads, scale=scale)
  with jax.enable_x64(dtype == 'float64'), jax.default_matmul_precision('highest'):
    inputs = arguments(shape, dtype, masked, per_head)
    actual = jax.jit(functools.partial(value_and_vjp, attend))(*inputs)
  for name, array, exact in zip(
    ('out', 'query', 'key', 'value'), actual, expected(shape, dtype, masked, per_head), strict=True
  ):
    assert array.dtype == dtype, name
    assert array.shape == exact.shape, name
    assert relative_error(array, exact) < BOUNDS[dtype], name
  return actual[0]


@pytest.mark.parametrize(('name', 'implementation', 'dtype'), table())
def test_value_and_gradients_match_the_definition(name, implementation, dtype):
  shape = SHAPES[name]
  if implementation == 'tpu':
    batch, regions, tokens, key_regions, key_tokens, heads, qk_width, width, top_k = shape
    form = tpu.choose_form(
      (batch, regions, tokens, heads * qk_width),
      (batch, key_regions, key_tokens, heads * qk_width),
      (batch, key_regions, key_tokens, heads * width),
      top_k,
      jnp.dtype(dtype).itemsize,
      gradients=True,
    )
    assert form == TPU_FORMS[name]
  check(shape, implementation, dtype)


def test_the_gradient_may_stream_what_the_value_keeps(monkeypatch):
  monkeypatch.setattr(tpu, 'RESIDENT_BYTES', 0)
  api._traced_once.cache_clear()
  check(SHAPES['many regions'], 'tpu', 'float32')
  api._traced_once.cache_clear()


@pytest.mark.parametrize(
  ('name', 'implementation'),
  [
    ('small map', 'xla'),
    ('odd regions', 'xla'),
    ('small map', 'tpu'),
    ('odd regions', 'tpu'),
    ('streamed', 'tpu'),
    ('odd regions', 'gpu'),
  ],
)
def test_queries_that_see_no_key_get_zeros_and_give_no_gradient(name, implementation):
  out = check(SHAPES[name], implementation, 'float32', masked=True)
  np.testing.assert_array_equal(out[:, 0], 0)


@pytest.mark.parametrize('implementation', ['xla', 'tpu'])
def test_heads_may_be_routed_apart(implementation):
  check(SHAPES['small map'], implementation, 'float32', masked=True, per_head=True)


@pytest.mark.parametrize(('name', 'chunk_bytes'), [('many regions', 2000), ('all regions', 1)])
def test_chunks_do_not_change_the_result(name, chunk_bytes, monkeypatch):
  monkeypatch.setattr(xla, 'CHUNK_BYTES', chunk_bytes)
  api._traced_once.cache_clear()
  check(SHAPES[name], 'xla', 'float64', masked=True)
  api._traced_once.cache_clear()


def test_the_definition_is_attention_over_the_routed_keys():
  shape = SHAPES['all regions']
  inputs = arguments(shape, 'float32', masked=True)
  query, key, value, routing, mask, _ = map(np.asarray, inputs)
  heads, width = shape[5], shape[7]
  out = kernels.routed_attention(
    *inputs[:4],
    num_heads=heads,
    scale=0.3,
    key_mask=inputs[4],
    implementation='reference',
  )
  for r in range(1, shape[1]):
    for h in range(heads):
      channels = slice(h * 8, (h + 1) * 8)
      keys = np.concatenate([key[0, j][:, channels] for j in routing[0, r]])
      values = np.concatenate([value[0, j][:, h * width : (h + 1) * width] for j in routing[0, r]])
      visible = np.concatenate([mask[0, j] for j in routing[0, r]])
      weights = np.exp(0.3 * query[0, r][:, channels] @ keys.T) * visible
      weights /= weights.sum(axis=1, keepdims=True)
      np.testing.assert_allclose(
        out[0, r, :, h * width : (h + 1) * width], weights @ values, atol=1e-6
      )


@pytest.mark.parametrize('windows', [7, 8])
def test_the_map_that_takes_100_gigabytes_elsewhere_takes_less_than_half_a_gigabyte(windows):
  tokens = -(-600 // windows) * -(-500 // windows)
  x = jax.ShapeDtypeStruct((1, windows**2, tokens, 20), jnp.float32)
  routing = jax.ShapeDtypeStruct((1, windows**2, 4), jnp.int32)
  attend = functools.partial(kernels.routed_attention, num_heads=2, implementation='xla')
  step = lambda *x: value_and_vjp(lambda *y: attend(*y[:4]), *x[:4], None, x[4])
  memory = jax.jit(step).lower(x, x, x, routing, x).compile().memory_analysis()
  assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2**29


def test_routing_has_no_gradient_and_rematerialisation_changes_nothing():
  query, key, value, routing, _, _ = arguments(SHAPES['small map'], 'float32')
  loss = lambda *x: jnp.sum(kernels.routed_attention(*x, num_heads=2) ** 2)
  plain = jax.grad(loss, argnums=(0, 1, 2, 3), allow_int=True)(query, key, value, routing)
  assert plain[3].dtype == jax.dtypes.float0
  again = jax.grad(jax.checkpoint(loss), argnums=(0, 1, 2), allow_int=True)
  for one, other in zip(plain, again(query, key, value, routing), strict=False):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_each_device_attends_in_its_own_images():
  shape = (4, *SHAPES['small map'][1:])
  query, key, value, routing, _, cotangent = arguments(shape, 'float32')
  mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  attend = lambda *x: kernels.routed_attention(*x[:4], num_heads=2)
  spec = jax.sharding.PartitionSpec('data')
  split = jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec)
  of_attention = lambda attend: value_and_vjp(
    lambda *x: attend(*x[:4]), query, key, value, routing, None, cotangent
  )
  one, many = jax.jit(lambda: (of_attention(attend), of_attention(split)))()
  for a, b in zip(one, many, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'query': (1, 2, 3)}, r'query must be \[batch, regions, tokens, channels\], got \(1, 2, 3\)'),
    ({'key': (1, 4, 5, 20)}, r'query has 16 channels and key 20'),
    ({'value': (1, 4, 6, 16)}, r'key \(1, 4, 5, 16\) and value \(1, 4, 6, 16\) must agree'),
    ({'key': (2, 4, 5, 16), 'value': (2, 4, 5, 16)}, r'query has batch 1 and key 2'),
    ({'value': (1, 4, 5, 0)}, r'value is empty'),
    ({'routing': (1, 3, 2)}, r'routing must be \[batch, regions, top_k\] = \[1, 2, top_k\]'),
    ({'key_mask': (1, 4, 6)}, r'key_mask must be .* = \(1, 4, 5\), got \(1, 4, 6\)'),
    ({'num_heads': 3}, r'16 channels of query do not divide into num_heads=3'),
    ({'dtype': jnp.int32}, r'query must be floating, got int32'),
    ({'implementation': 'triton'}, r"unknown implementation 'triton'"),
    ({'dtype': jnp.float16, 'implementation': 'tpu'}, r"'tpu' computes in float32 and bfloat16"),
  ],
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
  given = {'query': (1, 2, 3, 16), 'key': (1, 4, 5, 16), 'value': (1, 4, 5, 16)}
  dtype = changes.get('dtype', jnp.float32)
  arrays = [jnp.zeros(changes.get(name, shape), dtype) for name, shape in given.items()]
  mask = changes.get('key_mask')
  with pytest.raises(ValueError, match=message):
    kernels.routed_attention(
      *arrays,
      jnp.zeros(changes.get('routing', (1, 2, 2)), jnp.int32),
      num_heads=changes.get('num_heads', 2),
      key_mask=None if mask is None else jnp.ones(mask, bool),
      implementation=changes.get('implementation', 'auto'),
    )


# --- Devices that are not here ----------------------------------------------------------------


def stage(name, implementation='auto', dtype=jnp.bfloat16, with_gradient=True):
  """The operation of a stage and its arguments' shapes."""
  batch, regions, tokens, channels, heads, top_k = STAGES[name]
  x = jax.ShapeDtypeStruct((batch, regions, tokens, channels), dtype)
  routing = jax.ShapeDtypeStruct((batch, regions, top_k), jnp.int32)
  attend = functools.partial(
    kernels.routed_attention, num_heads=heads, implementation=implementation
  )
  if not with_gradient:
    return attend, (x, x, x, routing)

  def gradient(query, key, value, routing, cotangent):
    return value_and_vjp(lambda *x: attend(*x[:4]), query, key, value, routing, None, cotangent)

  return gradient, (x, x, x, routing, x)


@pytest.mark.parametrize(
  ('platform', 'there', 'not_there'),
  [
    ('cpu', 'stablehlo', 'custom_call @'),
    ('tpu', 'tpu_custom_call', 'triton'),
    ('cuda', 'xla.gpu.triton', 'tpu_custom_call'),
  ],
)
def test_auto_takes_the_kernel_of_the_platform(platform, there, not_there):
  function, shapes = stage('224 stage 2')
  disabled = [
    jax.export.DisabledSafetyCheck.custom_call(name)
    for name in ('__gpu$xla.gpu.triton', 'tpu_custom_call')
  ]
  lower = jax.export.export(jax.jit(function), platforms=[platform], disabled_checks=disabled)
  with export.lowering_for(platform):
    exported = lower(*shapes)
  text = exported.mlir_module()
  assert there in text
  assert not_there not in text


@pytest.mark.parametrize('name', STAGES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_blocks_of_the_gpu_fit_into_shared_memory(name, dtype):
  batch, regions, tokens, channels, heads, top_k = STAGES[name]
  x = jax.ShapeDtypeStruct((batch, regions, tokens, channels), dtype)
  plan = gpu._plan(x, x, x, top_k, heads, 1.0)
  rows = plan.query_block + 2 * plan.key_block
  bytes_of_blocks = rows * 2 * channels // heads * jnp.dtype(dtype).itemsize
  assert bytes_of_blocks <= 99 * 1024
  assert min(plan.query_block, plan.key_block) >= 16


def test_heads_too_wide_for_a_gpu_are_refused():
  x = jnp.zeros((1, 1, 16, 2048))
  with pytest.raises(ValueError, match="'gpu' has no room for heads of 2048 and 2048 channels"):
    kernels.routed_attention(
      x, x, x, jnp.zeros((1, 1, 1), jnp.int32), num_heads=1, implementation='gpu'
    )


def compile_for(topology, function, shapes, devices=1):
  """Compiles for the first chips of a topology, the batch split over them."""
  _, chips = aot.topology_devices(topology)
  mesh = jax.sharding.Mesh(np.array(chips[:devices]), ('data',))
  spec = jax.sharding.PartitionSpec('data')
  if devices > 1:
    function = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)
  sharding = jax.sharding.NamedSharding(mesh, spec)
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in shapes]
  return jax.jit(function).lower(*shapes).compile()


@pytest.mark.tpu_aot
@pytest.mark.parametrize('topology', TOPOLOGIES)
def test_gradients_compile_for_every_tpu(topology):
  text = compile_for(topology, *stage('224 stage 2')).as_text()
  assert text.count('tpu_custom_call') >= 2


@pytest.mark.tpu_aot
def test_kernels_compile_inside_shard_map():
  text = compile_for('v5e:2x2', *stage('224 stage 2'), devices=4).as_text()
  assert 'tpu_custom_call' in text
  assert 'all-gather' not in text


@pytest.mark.tpu_aot
@pytest.mark.extended
@pytest.mark.parametrize(
  ('topology', 'with_gradient'),
  # A gradient's program holds the forward pass's kernels too.
  [*((topology, True) for topology in TOPOLOGIES), ('v5e:2x2', False)],
)
@pytest.mark.parametrize('name', STAGES)
def test_every_stage_compiles_for_every_tpu(topology, name, with_gradient):
  compiled = compile_for(topology, *stage(name, with_gradient=with_gradient))
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes <= memory.argument_size_in_bytes + memory.output_size_in_bytes


@pytest.mark.tpu_aot
@pytest.mark.extended
@pytest.mark.parametrize('name', ['512x2048 stage 1', '512x2048 stage 3'])
def test_streamed_kernels_compile_inside_shard_map(name):
  function, shapes = stage(name)
  shapes = [jax.ShapeDtypeStruct((4, *x.shape[1:]), x.dtype) for x in shapes]
  assert 'tpu_custom_call' in compile_for('v5e:2x2', function, shapes, devices=4).as_text()
