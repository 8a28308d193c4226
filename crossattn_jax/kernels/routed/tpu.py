"""Routed attention as Pallas kernels for TPUs (Mosaic): their calls. `tpu_kernels` has the kernels.

Which keys are where:
  dense: small regions of small maps; all keys of an image, hidden where they are not routed.
  resident: small regions; the keys of an image stay in VMEM, several query regions share a step.
  streamed: large regions; the routing decides which blocks the pipeline fetches.
"""

import dataclasses
import functools
import math

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from crossattn_jax.kernels.routed import tpu_kernels, xla

# Queries and tasks of a grid step, if its regions are small.
STEP_QUERIES = 512
STEP_TASKS = 16
# Queries and keys of an image up to which all keys are scored.
DENSE_TOKENS = 1024
# Of a query; the scores of a unit must fit. Also the most queries of a region.
MOST_KEYS = 4096
# Keys and values of an image that stay in VMEM.
RESIDENT_BYTES = 2 * 2**20
# The same where nothing is summed over them.
FORWARD_RESIDENT_BYTES = 4 * 2**20
# Gradients of the queries of an image, in float32, that are summed in VMEM.
QUERY_SUM_BYTES = 8 * 2**20
# What a kernel may take of the vector memory. Without a word it gets 16 MiB, which is all that a
# core of a v4 has; wide regions of many keys take a little more on the others.
LIMIT_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class _Call:
  """A plan, and the operands as its kernels want them."""

  plan: tpu_kernels.Plan
  query: jax.Array
  key: jax.Array
  value: jax.Array
  routing: jax.Array
  seen: jax.Array | None
  bias: jax.Array | None

  @property
  def keys(self) -> list[jax.Array]:
    """Keys, values and, if there is one, their mask."""
    return [self.key, self.value] + ([] if self.seen is None else [self.seen])


def _prepare(query, key, value, routing, key_mask, num_heads, scale, bias, gradients):
  """Chooses the form, and brings the operands into its shapes."""
  batch, regions, _, channels = query.shape
  key_regions, key_tokens = key.shape[1:3]
  top_k = routing.shape[-1]
  heads = tpu_kernels.Heads(num_heads, channels // num_heads, value.shape[-1] // num_heads)
  shapes = (query.shape, key.shape, value.shape)
  form = choose_form(*shapes, top_k, query.dtype.itemsize, gradients=gradients)
  if bias is not None:
    form, bias = 'dense', jnp.swapaxes(bias.astype(jnp.float32), 1, 2) * tpu_kernels.LOG2_E
  channels_first, padding = False, 0
  if form == 'dense':
    tokens, key_tokens = regions * query.shape[2], key_regions * key_tokens
    seen = key_mask
    if seen is not None:
      seen = seen.astype(jnp.float32).reshape(batch, key_tokens, 1)
    routing = jnp.swapaxes(routing, 1, 2)
  else:
    query, key, value = map(_pad_tokens, (query, key, value))
    seen = None if key_mask is None else _pad_tokens(key_mask[..., None].astype(jnp.float32))
    padding = key.shape[2] - key_tokens
    tokens, key_tokens = query.shape[2], key.shape[2]
    if form == 'streamed':
      fills_lanes = lambda size: size % tpu_kernels.LANES == 0
      channels_first = not any(map(fills_lanes, (channels, value.shape[-1]))) and all(
        map(fills_lanes, (tokens, key_tokens))
      )
  plan = tpu_kernels.Plan(
    form=form,
    heads=heads,
    scale=scale,
    top_k=top_k,
    key_regions=key_regions,
    tokens=tokens,
    key_tokens=key_tokens,
    padding=padding,
    block=1,
    masked=seen is not None,
    biased=bias is not None,
    channels_first=channels_first,
  )
  if form == 'resident':
    tasks = len(plan.units) * len(tpu_kernels.split_keys(plan.keys))
    fits = max(1, min(STEP_QUERIES // tokens, STEP_TASKS // tasks))
    plan = dataclasses.replace(plan, block=max(n for n in range(1, fits + 1) if regions % n == 0))
    routing = routing.reshape(batch, 1, regions * top_k)
  if channels_first:
    query, key, value = (jnp.swapaxes(x, 2, 3) for x in (query, key, value))
  return _Call(plan, query, key, value, routing, seen, bias)


def _pad_tokens(x: jax.Array) -> jax.Array:
  return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % tpu_kernels.ROWS), (0, 0)))


def choose_form(
  query: tuple[int, ...],
  key: tuple[int, ...],
  value: tuple[int, ...],
  top_k: int,
  itemsize: int,
  *,
  gradients: bool,
) -> str:
  """Where the keys of these shapes are best kept.

  Args:
    query: shape, `[batch, regions, tokens, channels]`.
    key: shape.
    value: shape.
    top_k: key regions of a query region.
    itemsize: of the elements, in bytes.
    gradients: whether those of keys and values are summed.

  Returns:
    'dense', 'resident', 'streamed', or 'xla' where the scores of a few queries would not fit.
  """
  _, regions, tokens, _ = query
  _, key_regions, key_tokens, _ = key
  padded = key_tokens + -key_tokens % tpu_kernels.ROWS
  dense = regions * tokens * key_regions * key_tokens
  gathered = regions * (tokens + -tokens % tpu_kernels.ROWS) * top_k * padded
  if max(key_regions * key_tokens, regions * tokens) <= DENSE_TOKENS and dense <= 2 * gathered:
    return 'dense'
  if max(top_k * padded, tokens) > MOST_KEYS:
    return 'xla'
  lanes = sum(channels + -channels % tpu_kernels.LANES for channels in (key[-1], value[-1]))
  resident = key_regions * padded * lanes * itemsize
  most = RESIDENT_BYTES if gradients else FORWARD_RESIDENT_BYTES
  return 'resident' if resident <= most else 'streamed'


def forward(query, key, value, routing, key_mask, *, num_heads, scale, bias=None, interpret=False):
  """See `xla.forward`; `interpret` runs the kernel's code as jnp, for tests.

  A `bias` of the scores, `[heads, queries, keys]`, wants one region of queries and one of keys.
  """
  call = _prepare(query, key, value, routing, key_mask, num_heads, scale, bias, gradients=False)
  plan = call.plan
  if plan.form == 'xla':
    return xla.forward(query, key, value, routing, key_mask, num_heads=num_heads, scale=scale)
  shape = _region_shape(call, value.shape[-1])
  outputs = [(shape, query.dtype, _query_spec(plan, shape)), _log_sum_output(call)]
  out, log_sum = _run(
    tpu_kernels.forward_kernel,
    'routed_attention_forward',
    call,
    [call.query],
    outputs,
    interpret,
    products=2,
  )
  return _crop(plan, out, query.shape[2]), _flatten_log_sum(call, log_sum, query)


def backward(
  query,
  key,
  value,
  routing,
  key_mask,
  out,
  log_sum,
  d_out,
  *,
  num_heads,
  scale,
  bias=None,
  interpret=False,
):
  """See `xla.backward`; `interpret` runs the kernels' code as jnp, for tests.

  With a `bias`, see `forward`, its gradient is a fourth result, in float32.
  """
  call = _prepare(query, key, value, routing, key_mask, num_heads, scale, bias, gradients=True)
  plan = call.plan
  if plan.form == 'xla':
    arguments = (query, key, value, routing, key_mask, out, log_sum, d_out)
    return xla.backward(*arguments, num_heads=num_heads, scale=scale)
  if plan.form != 'dense':
    d_out, out = _pad_tokens(d_out), _pad_tokens(out)
  if plan.channels_first:
    d_out, out = jnp.swapaxes(d_out, 2, 3), jnp.swapaxes(out, 2, 3)
  log_sum = _unflatten_log_sum(call, log_sum, query)
  operands = [call.query, d_out, out, log_sum]
  d_bias = []
  outputs = [(call.query.shape, query.dtype, _query_spec(plan, call.query.shape))]
  if plan.form == 'streamed' and _fuses(call):
    d_key, d_value, d_query = _run_edges(call, d_out, log_sum, out, interpret, fused=True)
  elif plan.form == 'streamed':
    outputs.append(_log_sum_output(call))
    d_query, mean = _run(
      tpu_kernels.backward_kernel,
      'routed_attention_backward_query',
      call,
      operands,
      outputs,
      interpret,
      products=3,
    )
    d_key, d_value = _run_edges(call, d_out, log_sum, mean, interpret, fused=False)
  else:
    scratch = []
    for x in (call.key, call.value):
      outputs.append((x.shape, x.dtype, pl.BlockSpec((1, *x.shape[1:]), lambda b, r: (b, 0, 0, 0))))
      rows = x.shape[1:3] if plan.form == 'resident' else (plan.key_tokens,)
      scratch.append(pltpu.VMEM((*rows, x.shape[-1]), jnp.float32))
    if plan.biased:
      shape = call.bias.shape
      outputs.append((shape, jnp.float32, pl.BlockSpec(shape, lambda b, r: (0, 0, 0))))
    d_query, d_key, d_value, *d_bias = _run(
      tpu_kernels.backward_kernel,
      'routed_attention_backward',
      call,
      operands,
      outputs,
      interpret,
      products=5,
      scratch=scratch,
    )
  crop = functools.partial(_crop, plan)
  d_bias = [jnp.swapaxes(x, 1, 2) for x in d_bias]
  return (
    crop(d_query, query.shape[2]),
    crop(d_key, key.shape[2]),
    crop(d_value, value.shape[2]),
    *d_bias,
  )


def _region_shape(call: _Call, channels: int) -> tuple[int, ...]:
  """Of an array like the query, of other channels."""
  batch, regions, *inner = call.query.shape
  inner[0 if call.plan.channels_first else 1] = channels
  return (batch, regions, *inner)


def _crop(plan: tpu_kernels.Plan, x: jax.Array, tokens: int) -> jax.Array:
  """The caller's view of a kernel's result."""
  if plan.channels_first:
    x = jnp.swapaxes(x, 2, 3)
  return x[:, :, :tokens]


def _query_spec(plan: tpu_kernels.Plan, shape: tuple[int, ...]) -> pl.BlockSpec:
  block = shape[1] if plan.form == 'dense' else plan.block
  return pl.BlockSpec((1, block, *shape[2:]), lambda b, r, *_: (b, r, 0, 0))


def _log_sum_output(call: _Call) -> tuple[tuple[int, ...], jnp.dtype, pl.BlockSpec]:
  plan, (batch, regions) = call.plan, call.query.shape[:2]
  rows = plan.heads.count * plan.tokens
  steps = 1 if plan.form == 'dense' else regions // plan.block
  spec = pl.BlockSpec((1, 1, plan.block, rows), lambda b, r, *_: (b, r, 0, 0))
  return (batch, steps, plan.block, rows), jnp.float32, spec


def _flatten_log_sum(call: _Call, log_sum: jax.Array, query: jax.Array) -> jax.Array:
  if call.plan.form != 'dense':
    shape = (len(query), query.shape[1] * call.plan.heads.count, -1)
    log_sum = log_sum.reshape(shape)[:, :, : query.shape[2]]
  return log_sum.reshape(len(query), -1)


def _unflatten_log_sum(call: _Call, log_sum: jax.Array, query: jax.Array) -> jax.Array:
  if call.plan.form != 'dense':
    log_sum = log_sum.reshape(len(query), query.shape[1] * call.plan.heads.count, -1)
    short = call.plan.tokens - query.shape[2]
    log_sum = jnp.pad(log_sum, ((0, 0), (0, 0), (0, short)))
  return log_sum.reshape(_log_sum_output(call)[0])


def _run(kernel, name, call, operands, outputs, interpret, *, products, scratch=()):
  """Runs a kernel that walks over the query regions; `outputs` are (shape, dtype, block) each."""
  plan, (batch, regions) = call.plan, call.query.shape[:2]
  specs = [_query_spec(plan, x.shape) for x in operands[:3]]
  specs += [_log_sum_output(call)[2] for _ in operands[3:]]
  keys = call.keys
  for x in keys:
    if plan.form == 'streamed':
      for j in range(plan.top_k):
        block_of = lambda b, r, routing, j=j: (b, routing[(b * regions + r) * plan.top_k + j], 0, 0)
        specs.append(pl.BlockSpec((1, 1, *x.shape[2:]), block_of))
    else:
      index = (0,) * (x.ndim - 1)
      specs.append(pl.BlockSpec((1, *x.shape[1:]), lambda b, r, index=index: (b, *index)))
  keys = [x for x in keys for _ in range(plan.key_operands)]
  if plan.biased:
    keys.append(call.bias)
    specs.append(pl.BlockSpec(call.bias.shape, lambda b, r: (0, 0, 0)))
  if plan.form == 'streamed':
    routing, prefetched = call.routing.reshape(-1), 1
  else:
    routing, prefetched = call.routing, 0
    space = pltpu.SMEM if plan.form == 'resident' else pltpu.VMEM
    specs.insert(
      0, pl.BlockSpec((1, *routing.shape[1:]), lambda b, r: (b, 0, 0), memory_space=space)
    )
  steps, queries, keys_of_query = (
    _log_sum_output(call)[0][1],
    plan.tokens * regions,
    plan.key_tokens,
  )
  if plan.form == 'dense':
    queries = plan.tokens
  else:
    keys_of_query *= plan.top_k
  return pl.pallas_call(
    functools.partial(kernel, plan),
    name=name,
    out_shape=[_struct(shape, dtype, call) for shape, dtype, _ in outputs],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=prefetched,
      grid=(batch, steps),
      in_specs=specs,
      out_specs=[spec for *_, spec in outputs],
      scratch_shapes=scratch,
    ),
    compiler_params=pltpu.CompilerParams(
      # Two cores share the query regions, unless these add to the same sums.
      dimension_semantics=(
        'arbitrary' if plan.biased and scratch else 'parallel',
        'arbitrary' if scratch else 'parallel',
      ),
      vmem_limit_bytes=LIMIT_BYTES,
    ),
    cost_estimate=_cost(
      call, batch * queries * keys_of_query, products, [*operands, *keys], outputs
    ),
    interpret=interpret,
  )(routing, *operands, *keys)


def _struct(shape: tuple[int, ...], dtype: jnp.dtype, call: _Call) -> jax.ShapeDtypeStruct:
  """A result; inside `shard_map` it varies over the axes of the mesh as the queries do."""
  axes = jax.typeof(call.query).manual_axis_type
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=axes)


def _cost(call, pairs, products, operands, outputs):
  """What a kernel does for `pairs` of a query and a key."""
  arrays = {id(x): x.size * x.dtype.itemsize for x in operands}
  if call.plan.form == 'streamed':
    reads = call.query.shape[1] * call.plan.top_k / call.plan.key_regions
    arrays |= {
      id(x): round(reads * arrays[id(x)]) for x in (call.key, call.value) if id(x) in arrays
    }
  written = sum(math.prod(shape) * jnp.dtype(dtype).itemsize for shape, dtype, _ in outputs)
  return pl.CostEstimate(
    flops=2 * products * pairs * call.plan.heads.count * call.plan.heads.qk_width,
    bytes_accessed=sum(arrays.values()) + written,
    transcendentals=pairs * call.plan.heads.count,
  )


def _fuses(call: _Call) -> bool:
  """Whether one kernel makes all gradients of the streamed form."""
  plan, regions = call.plan, call.query.shape[1]
  sums = 4 * regions * plan.tokens * plan.heads.count * plan.heads.qk_width
  return plan.one_head_a_unit and (plan.top_k == 1 or sums <= QUERY_SUM_BYTES)


def _sort_edges(call: _Call) -> tuple[jax.Array, jax.Array]:
  """Pairs of a query region and a key region that it names, sorted by key region.

  Args:
    call: with a routing `[batch, regions, top_k]`.

  Returns:
    Key regions `[batch * edges + 1]`, since the kernel looks one edge ahead, and `[batch * edges]`
    twice the query region, plus one at the first of its edges.
  """
  routing, batch = call.routing, len(call.routing)
  # The sort is stable: the first choice of the least key region comes first.
  choice = lax.broadcasted_iota(jnp.int32, routing.shape, 2)
  is_first = choice == jnp.argmin(routing, axis=2, keepdims=True)
  codes = 2 * lax.broadcasted_iota(jnp.int32, routing.shape, 1) + is_first
  key_of, codes = lax.sort((routing.reshape(batch, -1), codes.reshape(batch, -1)), num_keys=1)
  return jnp.pad(key_of.reshape(-1), (0, 1)), codes.reshape(-1)


def _run_edges(
  call: _Call,
  d_out: jax.Array,
  log_sum: jax.Array,
  mean_or_out: jax.Array,
  interpret: bool,
  *,
  fused: bool,
) -> list[jax.Array]:
  """The gradients of keys and values where they are too large to be summed in VMEM.

  Args:
    call: of the streamed form.
    d_out: like the result.
    log_sum: as `_log_sum_output` says.
    mean_or_out: fused the result, else what the query kernel returned.
    interpret: see `backward`.
    fused: whether the gradient of the queries is made too.

  Returns:
    Gradients of keys, of values and, fused, of queries.
  """
  plan, (batch, regions) = call.plan, call.query.shape[:2]
  edges = regions * plan.top_k
  widths = plan.heads.count * plan.heads.qk_width, plan.heads.count * plan.heads.width
  of_query = lambda b, e, key_of, codes: (b, codes[b * edges + e] >> 1, 0, 0)
  of_key = lambda b, e, key_of, codes: (b, key_of[b * edges + e], 0, 0)
  spec = lambda x, index: pl.BlockSpec((1, 1, *x.shape[2:]), index)
  by_query = [call.query, d_out, log_sum, mean_or_out]
  by_key = call.keys
  outputs = [(x.shape, x.dtype, spec(x, of_key)) for x in by_key[:2]]
  sums = [(plan.key_tokens, width) for width in widths]
  if plan.one_head_a_unit:
    sums = [shape[::-1] for shape in sums]
  scratch = [pltpu.VMEM(shape, jnp.float32) for shape in sums]
  if fused and plan.top_k == 1:
    outputs.append((call.query.shape, call.query.dtype, spec(call.query, of_query)))
  elif fused:
    shape = (batch, regions, widths[0], plan.tokens)
    outputs.append((shape, jnp.float32, pl.BlockSpec(memory_space=pl.ANY)))
    scratch += [pltpu.VMEM(shape[1:], jnp.float32), pltpu.SemaphoreType.DMA]
  d_key, d_value, *d_query = pl.pallas_call(
    functools.partial(tpu_kernels.edges_kernel, plan, fused),
    name='routed_attention_backward' if fused else 'routed_attention_backward_key',
    out_shape=[_struct(shape, dtype, call) for shape, dtype, _ in outputs],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(batch, edges),
      in_specs=[*(spec(x, of_query) for x in by_query), *(spec(x, of_key) for x in by_key)],
      out_specs=[spec for *_, spec in outputs],
      scratch_shapes=scratch,
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=LIMIT_BYTES
    ),
    cost_estimate=_cost(
      call,
      batch * edges * plan.tokens * plan.key_tokens,
      5 if fused else 4,
      [*by_query, *by_key],
      outputs,
    ),
    interpret=interpret,
  )(*_sort_edges(call), *by_query, *by_key)
  d_key, d_value = _fill(call, d_key, d_value, interpret)
  if fused and plan.top_k > 1:
    (d_query,) = d_query
    d_query = (d_query * plan.scale).astype(call.query.dtype)
    return d_key, d_value, d_query if plan.channels_first else jnp.swapaxes(d_query, 2, 3)
  return d_key, d_value, *d_query


def _fill(call: _Call, d_key: jax.Array, d_value: jax.Array, interpret: bool) -> list[jax.Array]:
  """Zeros for regions that no query names, which no step has written."""
  batch, key_regions = call.key.shape[:2]
  region = lax.broadcasted_iota(jnp.int32, (1, key_regions, 1), 1)
  named = jnp.any(call.routing.reshape(batch, 1, -1) == region, axis=2)
  gradients = [x.reshape(batch * key_regions, *x.shape[2:]) for x in (d_key, d_value)]
  anywhere = [pl.BlockSpec(memory_space=pl.ANY)] * 2
  filled = pl.pallas_call(
    tpu_kernels.fill_kernel,
    name='routed_attention_backward_fill',
    out_shape=[_struct(x.shape, x.dtype, call) for x in gradients],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(1,),
      in_specs=anywhere,
      out_specs=anywhere,
      scratch_shapes=[
        *(pltpu.VMEM(x.shape[1:], x.dtype) for x in gradients),
        pltpu.SemaphoreType.DMA,
      ],
    ),
    input_output_aliases={1: 0, 2: 1},
    interpret=interpret,
  )(named.reshape(-1).astype(jnp.int32), *gradients)
  return [x.reshape(call.key.shape[:2] + x.shape[1:]) for x in filled]
