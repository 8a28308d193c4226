"""Routed attention as Pallas kernels for GPUs (Triton).

A program attends from a block of queries of one head to blocks of its routed keys, with the running
maximum and sum of the softmax. Keys and queries are addressed row by row, so that a block of them
is full however small the regions are. The gradients of a key region walk over the query regions
that name it: a list sorted by key region, without atomics, so that sums have a fixed order.
"""

import dataclasses
import functools
import math

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp

# What every NVIDIA GPU since Ampere gives to one program.
SHARED_MEMORY_BYTES = 99 * 2**10
# Tensor cores multiply nothing smaller.
LEAST_BLOCK = 16
MOST_BLOCK = 64
HIDDEN = -1e30
LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What the kernels need to know beside the arrays.

  Attributes:
    heads: in the channels.
    scale: of the scores.
    top_k: key regions of a query region.
    tokens: of a query region.
    key_tokens: of a key region.
    qk_width: channels of a head's queries and keys.
    width: channels of a head's values.
    most_rows: that a block may have.
    query_block: queries of a block.
    key_block: keys of a block.
  """

  heads: int
  scale: float
  top_k: int
  tokens: int
  key_tokens: int
  qk_width: int
  width: int
  most_rows: int
  query_block: int
  key_block: int

  def of_keys(self, queries: int) -> '_Plan':
    """For programs that own the keys of a region, which about so many queries attend to."""
    return dataclasses.replace(
      self,
      query_block=min(self.most_rows, _power_of_two(queries)),
      key_block=min(self.most_rows, _power_of_two(self.key_tokens)),
    )


def _plan(query, key, value, top_k, num_heads, scale):
  tokens, key_tokens = query.shape[2], key.shape[2]
  widths = query.shape[-1] // num_heads, value.shape[-1] // num_heads
  block = MOST_BLOCK
  # A block of queries, of the gradient of the result, and of keys and values, double-buffered.
  bytes_of_row = 3 * sum(map(_power_of_two, widths)) * query.dtype.itemsize
  while block > LEAST_BLOCK and block * bytes_of_row > SHARED_MEMORY_BYTES:
    block //= 2
  if block * bytes_of_row > SHARED_MEMORY_BYTES:
    raise ValueError(
      f"routed_attention: implementation 'gpu' has no room for heads of {widths[0]} and "
      f"{widths[1]} channels in shared memory; take 'xla', or more heads"
    )
  return _Plan(
    heads=num_heads,
    scale=scale,
    top_k=top_k,
    tokens=tokens,
    key_tokens=key_tokens,
    qk_width=widths[0],
    width=widths[1],
    most_rows=block,
    query_block=min(block, _power_of_two(tokens)),
    key_block=min(block, _power_of_two(top_k * key_tokens)),
  )


def _power_of_two(size: int) -> int:
  return max(LEAST_BLOCK, 1 << (size - 1).bit_length())


def _of_head(ref, image, rows, valid, head, width):
  """A head's part of some rows, and where that is no padding; `ref` is `[images, rows, channels]`.

  No two addresses are equal, be they padding: as jnp, a masked store writes what it has read.
  """
  own = jnp.arange(_power_of_two(width))
  mask = valid[:, None] & (own < width)[None]
  return ref.at[image, rows[:, None], head * width + own[None]], mask


def _rows(*place):
  """Loads `[rows, padded width]` with zeros for padding; for `place` see `_of_head`."""
  at, mask = _of_head(*place)
  return plgpu.load(at, mask=mask, other=0.0)


def _store_rows(x, ref, *place):
  at, mask = _of_head(ref, *place)
  plgpu.store(at, x.astype(ref.dtype), mask=mask)


def _routed_rows(plan, routing_ref, mask_ref, image, region, block):
  """Rows of a block of a query region's keys, and whether there are such and they are visible."""
  place = block * plan.key_block + jnp.arange(plan.key_block)
  valid = place < plan.top_k * plan.key_tokens
  place = jnp.minimum(place, plan.top_k * plan.key_tokens - 1)
  choice = plgpu.load(routing_ref.at[image, region * plan.top_k + place // plan.key_tokens])
  rows = choice * plan.key_tokens + place % plan.key_tokens
  if mask_ref is not None:
    valid &= plgpu.load(mask_ref.at[image, rows], mask=valid, other=0) != 0
  return rows, valid


def _query_rows(plan):
  """Image, head, region, rows and validity of a program's queries."""
  image, head = pl.program_id(2) // plan.heads, pl.program_id(2) % plan.heads
  region = pl.program_id(1)
  token = pl.program_id(0) * plan.query_block + jnp.arange(plan.query_block)
  valid = token < plan.tokens
  return image, head, region, region * plan.tokens + token, valid


def _blocks_of_keys(plan):
  return pl.cdiv(plan.top_k * plan.key_tokens, plan.key_block)


def _product(a, b, **transposed):
  return plgpu.dot(a, b, **transposed).astype(jnp.float32)


def _forward_kernel(plan, masked, *refs):
  query_ref, key_ref, value_ref, routing_ref, *refs = refs
  mask_ref = refs.pop(0) if masked else None
  out_ref, log_sum_ref = refs
  image, head, region, rows, valid = _query_rows(plan)
  query = _rows(query_ref, image, rows, valid, head, plan.qk_width)

  def attend(block, carry):
    out, largest, total = carry
    key_rows, seen = _routed_rows(plan, routing_ref, mask_ref, image, region, block)
    key = _rows(key_ref, image, key_rows, seen, head, plan.qk_width)
    value = _rows(value_ref, image, key_rows, seen, head, plan.width)
    scores = _product(query, key, trans_b=True) * (plan.scale * LOG2_E)
    scores = jnp.where(seen[None], scores, HIDDEN)
    new_largest = jnp.maximum(largest, jnp.max(scores, axis=1))
    weights = jnp.where(seen[None], jnp.exp2(scores - new_largest[:, None]), 0.0)
    decay = jnp.exp2(largest - new_largest)
    total = total * decay + jnp.sum(weights, axis=1)
    out = out * decay[:, None] + _product(weights.astype(value.dtype), value)
    return out, new_largest, total

  zeros = jnp.zeros((plan.query_block,), jnp.float32)
  out = jnp.zeros((plan.query_block, _power_of_two(plan.width)), jnp.float32)
  out, largest, total = lax.fori_loop(
    0, _blocks_of_keys(plan), attend, (out, zeros + HIDDEN, zeros)
  )
  total = jnp.where(total == 0, 1.0, total)
  _store_rows(out / total[:, None], out_ref, image, rows, valid, head, plan.width)
  log_sum = (largest + jnp.log2(total)) / LOG2_E
  plgpu.store(log_sum_ref.at[image, head, rows], log_sum, mask=valid)


def _differences(plan, query, d_out, key, value, log_sum, mean, seen):
  """Weights and gradients of the scores, but for their scale: `[queries, keys]`."""
  scores = _product(query, key, trans_b=True) * (plan.scale * LOG2_E)
  weights = jnp.where(seen, jnp.exp2(scores - log_sum[:, None] * LOG2_E), 0.0)
  d_scores = weights * (_product(d_out, value, trans_b=True) - mean[:, None])
  return weights.astype(query.dtype), d_scores.astype(query.dtype)


def _query_gradient_kernel(plan, masked, *refs):
  query_ref, key_ref, value_ref, routing_ref, *refs = refs
  mask_ref = refs.pop(0) if masked else None
  d_out_ref, log_sum_ref, mean_ref, d_query_ref = refs
  image, head, region, rows, valid = _query_rows(plan)
  query = _rows(query_ref, image, rows, valid, head, plan.qk_width)
  d_out = _rows(d_out_ref, image, rows, valid, head, plan.width)
  log_sum = plgpu.load(log_sum_ref.at[image, head, rows], mask=valid, other=0.0)
  mean = plgpu.load(mean_ref.at[image, head, rows], mask=valid, other=0.0)

  def add(block, d_query):
    key_rows, seen = _routed_rows(plan, routing_ref, mask_ref, image, region, block)
    key = _rows(key_ref, image, key_rows, seen, head, plan.qk_width)
    value = _rows(value_ref, image, key_rows, seen, head, plan.width)
    _, d_scores = _differences(plan, query, d_out, key, value, log_sum, mean, seen[None])
    return d_query + _product(d_scores, key)

  d_query = jnp.zeros((plan.query_block, _power_of_two(plan.qk_width)), jnp.float32)
  d_query = lax.fori_loop(0, _blocks_of_keys(plan), add, d_query)
  _store_rows(d_query * plan.scale, d_query_ref, image, rows, valid, head, plan.qk_width)


def _key_gradient_kernel(plan, masked, *refs):
  query_ref, key_ref, value_ref, first_ref, region_ref, *refs = refs
  mask_ref = refs.pop(0) if masked else None
  d_out_ref, log_sum_ref, mean_ref, d_key_ref, d_value_ref = refs
  image, head = pl.program_id(2) // plan.heads, pl.program_id(2) % plan.heads
  token = pl.program_id(0) * plan.key_block + jnp.arange(plan.key_block)
  seen = valid = token < plan.key_tokens
  key_rows = pl.program_id(1) * plan.key_tokens + token
  if mask_ref is not None:
    seen = valid & (plgpu.load(mask_ref.at[image, key_rows], mask=valid, other=0) != 0)
  key = _rows(key_ref, image, key_rows, seen, head, plan.qk_width)
  value = _rows(value_ref, image, key_rows, seen, head, plan.width)
  # The edges of this key region, and the queries of those edges one after the other.
  first = plgpu.load(first_ref.at[image, pl.program_id(1)])
  count = (plgpu.load(first_ref.at[image, pl.program_id(1) + 1]) - first) * plan.tokens

  def add(block, carry):
    d_key, d_value = carry
    place = block * plan.query_block + jnp.arange(plan.query_block)
    there = place < count
    place = jnp.minimum(place, count - 1)
    region = plgpu.load(region_ref.at[image, first + place // plan.tokens])
    rows = region * plan.tokens + place % plan.tokens
    query = _rows(query_ref, image, rows, there, head, plan.qk_width)
    d_out = _rows(d_out_ref, image, rows, there, head, plan.width)
    log_sum = plgpu.load(log_sum_ref.at[image, head, rows], mask=there, other=0.0)
    mean = plgpu.load(mean_ref.at[image, head, rows], mask=there, other=0.0)
    both = there[:, None] & seen[None]
    weights, d_scores = _differences(plan, query, d_out, key, value, log_sum, mean, both)
    return (
      d_key + _product(d_scores, query, trans_a=True),
      d_value + _product(weights, d_out, trans_a=True),
    )

  d_key = jnp.zeros((plan.key_block, _power_of_two(plan.qk_width)), jnp.float32)
  d_value = jnp.zeros((plan.key_block, _power_of_two(plan.width)), jnp.float32)
  blocks = pl.cdiv(count, plan.query_block)
  d_key, d_value = lax.fori_loop(0, blocks, add, (d_key, d_value))
  _store_rows(d_key * plan.scale, d_key_ref, image, key_rows, valid, head, plan.qk_width)
  _store_rows(d_value, d_value_ref, image, key_rows, valid, head, plan.width)


def _flat(x: jax.Array) -> jax.Array:
  """Merges regions and tokens."""
  return x.reshape(len(x), -1, *x.shape[3:])


def _run(plan, kernel, name, grid, operands, outputs, products, interpret):
  own_rows = plan.key_block if kernel is _key_gradient_kernel else plan.query_block
  image, pairs = operands[0].shape[0], grid[1] * plan.tokens * plan.top_k * plan.key_tokens
  pairs *= image
  moved = sum(x.size * x.dtype.itemsize for x in (*operands, *outputs))
  axes = jax.typeof(operands[0]).manual_axis_type
  masked = any(x.dtype == jnp.int8 for x in operands)
  return pl.pallas_call(
    functools.partial(kernel, plan, masked),
    name=name,
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=axes) for x in outputs],
    grid=grid,
    # A warp for sixteen rows.
    compiler_params=plgpu.CompilerParams(num_warps=min(4, own_rows // 16), num_stages=2),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * pairs * plan.heads * plan.qk_width,
      bytes_accessed=moved,
      transcendentals=pairs * plan.heads,
    ),
    interpret=interpret,
  )(*operands)


def forward(query, key, value, routing, key_mask, *, num_heads, scale, interpret=False):
  """See `xla.forward`; `interpret` runs the kernel's code as jnp, for tests."""
  batch, regions, tokens, _ = query.shape
  plan = _plan(query, key, value, routing.shape[-1], num_heads, scale)
  operands = [_flat(query), _flat(key), _flat(value), routing.reshape(batch, -1)]
  if key_mask is not None:
    operands.append(_flat(key_mask.astype(jnp.int8)))
  outputs = [
    jax.ShapeDtypeStruct((batch, regions * tokens, value.shape[-1]), value.dtype),
    jax.ShapeDtypeStruct((batch, num_heads, regions * tokens), jnp.float32),
  ]
  grid = (pl.cdiv(tokens, plan.query_block), regions, batch * num_heads)
  out, log_sum = _run(
    plan, _forward_kernel, 'routed_attention_forward', grid, operands, outputs, 2, interpret
  )
  return out.reshape(batch, regions, tokens, -1), log_sum.reshape(batch, -1)


def backward(
  query, key, value, routing, key_mask, out, log_sum, d_out, *, num_heads, scale, interpret=False
):
  """See `xla.backward`; `interpret` runs the kernels' code as jnp, for tests."""
  batch, regions, tokens, _ = query.shape
  key_regions, key_tokens = key.shape[1:3]
  top_k = routing.shape[-1]
  plan = _plan(query, key, value, top_k, num_heads, scale)
  by_head = lambda x: jnp.moveaxis(_flat(x).reshape(batch, -1, num_heads, plan.width), 2, 1)
  mean = jnp.sum(by_head(out).astype(jnp.float32) * by_head(d_out).astype(jnp.float32), axis=-1)
  attended = [_flat(query), _flat(key), _flat(value)]
  mask = [] if key_mask is None else [_flat(key_mask.astype(jnp.int8))]
  given = [*mask, _flat(d_out), log_sum.reshape(mean.shape), mean]
  like = lambda x: jax.ShapeDtypeStruct((batch, x.shape[1] * x.shape[2], x.shape[3]), x.dtype)
  (d_query,) = _run(
    plan,
    _query_gradient_kernel,
    'routed_attention_backward_query',
    (pl.cdiv(tokens, plan.query_block), regions, batch * num_heads),
    [*attended, routing.reshape(batch, -1), *given],
    [like(query)],
    3,
    interpret,
  )
  edges = lax.broadcasted_iota(jnp.int32, (batch, regions * top_k), 1)
  key_of, edges = lax.sort((routing.reshape(batch, -1), edges), num_keys=1)
  first = jnp.sum(key_of[:, None] < jnp.arange(key_regions + 1)[:, None], axis=-1, dtype=jnp.int32)
  key_plan = plan.of_keys(regions * top_k * tokens // key_regions)
  d_key, d_value = _run(
    key_plan,
    _key_gradient_kernel,
    'routed_attention_backward_key',
    (pl.cdiv(key_tokens, key_plan.key_block), key_regions, batch * num_heads),
    [*attended, first, edges // top_k, *given],
    [like(key), like(value)],
    4,
    interpret,
  )
  return d_query.reshape(query.shape), d_key.reshape(key.shape), d_value.reshape(value.shape)
