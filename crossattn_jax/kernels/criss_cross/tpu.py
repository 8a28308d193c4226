"""Criss-cross attention for TPUs: a Mosaic kernel per direction, for rows and for columns.

A kernel sees whole lines. A row of the map is a matrix `[width, channels]` in memory, and a grid
step takes some rows. A column is spread over the tiles of all rows: a step takes a strip of eight
neighbouring columns and reads one of them with a stride, which needs 32-bit words and 128 lanes. So
two neighbouring columns of bfloat16, which share words, are read and written together; and channels
that fill lanes are passed in slabs of 128, others are copied to scratch memory first.

Scores are kept as `[keys, queries]`: the statistics of queries then lie along lanes, as they do in
memory, and of the six products only those that end in queries need their left side turned.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from crossattn_jax.kernels import pipelining
from crossattn_jax.kernels.criss_cross import xla

_LANES = 128
_STRIP = 8
_MASKED = -1e30
# Rows of a grid step are as many as fit here, so that the smallest memory (v4: 16 MiB) is enough.
_STEP_BYTES = 10 * 2**20
# Beyond, lines are too long for any chip, and XLA's form takes over.
_LIMIT_BYTES = 120 * 2**20
# The scores of longer lines are computed for some queries at a time.
_LONGEST_AT_ONCE = 512
_QUERIES = 256


def attend(query, key, value, previous=None, *, axis, itself, interpret=False):
  """See `passes.attend`. Lines that do not fit in VMEM are left to XLA."""
  layout = _layout(
    query, value, axis, interpret, value_maps=2 if previous is None else 3, key_maps=2
  )
  if layout is None:
    return xla.attend(query, key, value, previous, axis=axis, itself=itself)
  maps, statistics = [query, key, value], []
  if previous is not None:
    maps.append(previous[0])
    statistics.append(previous[1])
  (out,), (lse,) = _call(
    functools.partial(_attend_kernel, itself=itself),
    layout,
    maps,
    statistics,
    like=[value],
    written=1,
    cost=_cost(query, value, layout, products=(1, 1)),
    name='criss_cross',
    interpret=interpret,
  )
  return out, lse


def attend_vjp(
  query, key, value, lse, cotangent, out, delta, previous, *, axis, itself, interpret=False
):
  """See `passes.attend_vjp`. Lines that do not fit in VMEM are left to XLA."""
  value_maps = 3 + (out is not None) + (previous is not None)
  key_maps = 4 if previous is None else 6
  layout = _layout(query, value, axis, interpret, value_maps=value_maps, key_maps=key_maps)
  if layout is None:
    return xla.attend_vjp(
      query, key, value, lse, cotangent, out, delta, previous, axis=axis, itself=itself
    )
  maps, statistics = [query, key, value, cotangent], [lse]
  if delta is None:
    maps.append(out)
  else:
    statistics.append(delta)
  gradients, written = _call(
    functools.partial(_attend_vjp_kernel, itself=itself),
    layout,
    [*maps, *(previous or ())],
    statistics,
    like=[query, key, value],
    written=int(delta is None),
    cost=_cost(query, value, layout, products=(3, 2)),
    name='criss_cross_vjp',
    interpret=interpret,
  )
  return tuple(gradients), (written[0] if delta is None else delta)


@dataclasses.dataclass(frozen=True)
class _Layout:
  """How a kernel sees maps whose lines lie along an axis.

  Attributes:
    shape: `[batch, *positions]` of the maps.
    axis: along which lines lie.
    dtype: of the maps.
    strip: lines of a grid step.
  """

  shape: tuple[int, ...]
  axis: int
  dtype: jnp.dtype
  strip: int = _STRIP

  @property
  def columns(self) -> bool:
    """Whether lines lie across rows, or are rows."""
    return self.axis != len(self.shape) - 1

  @property
  def length(self) -> int:
    """Positions of a line."""
    return self.shape[self.axis]

  @property
  def group(self) -> int:
    """Lines that are read together."""
    return 4 // self.dtype.itemsize if self.columns else 1

  @property
  def sizes(self) -> tuple[int, int]:
    """Planes of a map, and lines of a plane."""
    before, after = self.shape[: self.axis], self.shape[self.axis + 1 :]
    return (math.prod(before), math.prod(after)) if self.columns else (1, math.prod(before))

  @property
  def grid(self) -> tuple[int, int]:
    """Planes, and strips of a plane."""
    planes, lines = self.sizes
    return planes, pl.cdiv(lines, self.strip)

  def map_shape(self, channels: int) -> tuple[int, ...]:
    """A map's shape in a kernel."""
    planes, lines = self.sizes
    order = (self.length, lines) if self.columns else (lines, self.length)
    return planes, *order, channels

  def statistic_of(self, x: jax.Array) -> jax.Array:
    """`[planes, lines, 1, length]` of one number per position."""
    planes, lines = self.sizes
    if self.columns:
      x = x.reshape(planes, self.length, lines).swapaxes(1, 2)
    return x.reshape(planes, lines, 1, self.length)

  def from_statistic(self, x: jax.Array) -> jax.Array:
    """The inverse of `statistic_of`."""
    return (x[:, :, 0].swapaxes(1, 2) if self.columns else x).reshape(self.shape)

  def slabs(self, channels: int) -> int:
    """Operands that a map is passed as."""
    return channels // _LANES if self.columns and channels % _LANES == 0 else 1

  def copied(self, channels: int) -> bool:
    """Whether blocks of a map are copied before lines are read."""
    return self.columns and channels % _LANES != 0

  def block(self, channels: int, slab: int = 0) -> pl.BlockSpec:
    """The strip of a grid step: all channels, or a slab of them."""
    if self.columns:
      shape = (1, self.length, self.strip, channels)
      return pl.BlockSpec(shape, lambda plane, step: (plane, 0, step, slab))
    shape = (1, self.strip, self.length, channels)
    return pl.BlockSpec(shape, lambda plane, step: (plane, step, 0, slab))

  @property
  def statistic_block(self) -> pl.BlockSpec:
    """The statistics of the same lines."""
    return pl.BlockSpec((1, self.strip, 1, self.length), lambda plane, step: (plane, step, 0, 0))

  def words(self, channels: int) -> pltpu.VMEM:
    """Scratch in which lines across rows can be read and written."""
    dtype = jnp.uint32 if self.group == 2 else self.dtype
    rows = self.length * self.strip // self.group
    return pltpu.VMEM((pl.cdiv(channels, _LANES), rows, _LANES), dtype)

  @property
  def queries(self) -> int:
    """Queries of a line whose scores are computed at once."""
    if self.length <= _LONGEST_AT_ONCE:
      return self.length
    return _QUERIES if self.length % _QUERIES == 0 else _LANES

  @property
  def score_shape(self) -> tuple[int, int]:
    """Of the scratch for those scores: whole lanes of keys, and of queries."""
    return tuple(pl.cdiv(size, _LANES) * _LANES for size in (self.length, self.queries))

  def block_bytes(self, channels: int) -> int:
    """Of a block in VMEM, where channels fill lanes."""
    return self.strip * self.length * pl.cdiv(channels, _LANES) * _LANES * self.dtype.itemsize

  def for_groups(
    self, begin: Callable[[int | jax.Array], Any], end: Callable[[int | jax.Array, Any], None]
  ) -> None:
    """Begins every group of a strip, and ends it when the next one has begun."""
    groups = self.strip // self.group
    if self.columns:
      # A stride must start at a number that the compiler knows.
      pipelining.pipelined(range(groups), begin, end)
      return
    together = min(4, groups) if self.queries == self.length else 1

    def some(turn, carry):
      pipelining.pipelined([turn * together + i for i in range(together)], begin, end)
      return carry

    jax.lax.fori_loop(0, groups // together, some, None)

  def for_blocks(self, function: Callable[[jax.Array, Any], None]) -> None:
    """Calls a function with the start and the slice of every block of queries of a line."""

    def block(n, carry):
      start = pl.multiple_of(n * self.queries, self.queries)
      function(start, pl.ds(start, self.queries))
      return carry

    jax.lax.fori_loop(0, self.length // self.queries, block, None)


def _layout(query, value, axis, interpret, *, value_maps, key_maps) -> _Layout | None:
  """The largest strip that fits, or None where none does."""
  available = _LIMIT_BYTES
  if pltpu.is_tpu_device():
    available = min(available, pltpu.get_tpu_info().vmem_capacity_bytes * 7 // 8)
  layout = _Layout(query.shape[:-1], axis, jnp.dtype(query.dtype))
  if interpret:
    # The interpreter compiles every line of a strip anew.
    return dataclasses.replace(layout, strip=2)
  for strip in (_STRIP,) if layout.columns else (_STRIP, 4, 2, 1):
    layout = dataclasses.replace(layout, strip=strip)
    keys, values = (layout.block_bytes(x.shape[-1]) for x in (query, value))
    # Twice, since the next step's blocks arrive meanwhile.
    step = 2 * (key_maps * keys + value_maps * values)
    if layout.columns:
      step += key_maps * keys + values
    if step <= _STEP_BYTES:
      break
  step += 8 * 4 * math.prod(layout.score_shape)
  if layout.queries < layout.length:
    # Lines are copied, gradients summed.
    step += layout.group * layout.length * (key_maps + value_maps) * _LANES * 4
    step += layout.group * layout.length * value_maps * value.shape[-1] * 4
  fits = step <= available and layout.length % layout.queries == 0
  return layout if fits else None


class _Source:
  """An input block, read line by line."""

  def __init__(self, layout, refs, words):
    self.layout = layout
    self.channels = sum(ref.shape[-1] for ref in refs)
    if not layout.columns:
      self.parts = refs
    elif words is None:
      self.parts = [_as_words(layout, ref) for ref in refs]
    else:
      _copy_to_words(layout, refs[0], words)
      self.parts = [words.at[c] for c in range(words.shape[0])]

  def read(self, group, dtype):
    """The lines of a group, each `[length, channels]`."""
    if not self.layout.columns:
      return [self.parts[0][0, group].astype(dtype)]
    words = [part[_stride(self.layout, group), :] for part in self.parts]
    lines = [words]
    if self.layout.group == 2:
      lines = [[_low(x) for x in words], [_high(x) for x in words]]
    return [
      jnp.concatenate([x.astype(dtype) for x in line], axis=-1)[:, : self.channels]
      for line in lines
    ]


class _Sink:
  """An output block, written line by line."""

  def __init__(self, layout, ref, words):
    self.layout, self.ref, self.words = layout, ref, words

  def write(self, group, lines):
    """Writes the lines of a group."""
    if not self.layout.columns:
      self.ref[0, group] = lines[0].astype(self.ref.dtype)
      return
    for c in range(self.words.shape[0]):
      parts = [x[:, c * _LANES : (c + 1) * _LANES] for x in lines]
      if self.layout.group == 2:
        low, high = (_rounded(x) for x in parts)
        parts = [high | (low >> 16)]
      at = _stride(self.layout, group)
      self.words.at[c][at, : parts[0].shape[-1]] = parts[0]

  def finish(self):
    """Copies what was written to the block."""
    if self.layout.columns:
      _copy_from_words(self.layout, self.ref, self.words)


def _stride(layout, group):
  return pl.ds(group, layout.length, stride=layout.strip // layout.group)


def _as_words(layout, ref):
  rows = ref.reshape(layout.length * layout.strip, _LANES)
  return rows.bitcast(jnp.uint32) if layout.group == 2 else rows


def _copy_to_words(layout, ref, words):
  for c in range(words.shape[0]):
    part = ref[0, :, :, c * _LANES : (c + 1) * _LANES]
    part = part.reshape(layout.length * layout.strip, part.shape[-1])
    if layout.group == 2:
      part = pltpu.bitcast(part, jnp.uint32)
    words[c, :, : part.shape[-1]] = part


def _copy_from_words(layout, ref, words):
  for c in range(words.shape[0]):
    part = words[c]
    if layout.group == 2:
      part = pltpu.bitcast(part, jnp.bfloat16)
    part = part.reshape(layout.length, layout.strip, _LANES)
    width = min(_LANES, ref.shape[-1] - c * _LANES)
    ref[0, :, :, c * _LANES : c * _LANES + width] = part[:, :, :width]


def _low(words):
  return jax.lax.bitcast_convert_type(words << 16, jnp.float32)


def _high(words):
  return jax.lax.bitcast_convert_type(words & jnp.uint32(0xFFFF0000), jnp.float32)


def _rounded(x):
  # To bfloat16, whose bits are the high ones.
  return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16).astype(jnp.float32), jnp.uint32)


def _dot(a, b, a_axis, b_axis):
  return jax.lax.dot_general(
    a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32
  )


def _scores(query, key, start, itself):
  """`[keys, queries]`."""
  scores = _dot(key, query, 1, 1)
  if itself:
    return scores
  keys = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
  queries = start + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
  return jnp.where(keys == queries, _MASKED, scores)


def _attend_line(scores, value, before, lse_before, turn):
  """Queries of a line by their scores: maps `[positions, channels]`, statistics `[1, queries]`."""
  keys, queries = scores.shape
  highest = scores.max(axis=0, keepdims=True)
  if before is not None:
    highest = jnp.maximum(highest, lse_before)
  weights = jnp.exp(scores - highest)
  total = weights.sum(axis=0, keepdims=True)
  if before is not None:
    share = jnp.exp(lse_before - highest)
    total += share
    # Turned along with the weights, into a column.
    turn[-8:, :queries] = jnp.broadcast_to(share / total, (8, queries))
  # One reciprocal a query instead of a division a weight.
  turn[:keys, :queries] = weights * (1.0 / total)
  turned = turn[...].T
  out = _dot(turned[:queries, :keys].astype(value.dtype), value, 1, 0)
  if before is not None:
    column = turn.shape[0] - 8
    out += turned[:queries, column : column + 1] * before
  return out, highest + jnp.log(total)


def _attend_line_vjp(scores, weight_gradient, query, key, cotangent, lse, delta, turn):
  """As `_attend_line`. Returns gradients of the queries, and parts of those of keys and values."""
  dtype = query.dtype
  keys, queries = scores.shape
  weights = jnp.exp(scores - lse)
  score_gradient = weights * (weight_gradient - delta)
  turn[:keys, :queries] = score_gradient
  turned = turn[...].T[:queries, :keys].astype(dtype)
  return (
    _dot(turned, key, 1, 0),
    _dot(score_gradient.astype(dtype), query, 1, 0),
    _dot(weights.astype(dtype), cotangent, 1, 0),
  )


def _delta_line(out, cotangent, turn):
  """Sums over channels, `[1, length]`."""
  products = out.astype(jnp.float32) * cotangent.astype(jnp.float32)
  length, channels = products.shape
  total = jnp.zeros((length, _LANES), jnp.float32)
  whole = channels // _LANES * _LANES
  for c in range(0, whole, _LANES):
    total += products[:, c : c + _LANES]
  turn[:length, :_LANES] = total
  if whole < channels:
    turn[:length, : channels - whole] += products[:, whole:]
  rows = pl.cdiv(length, _LANES) * _LANES
  return turn[:rows, :_LANES].T.sum(axis=0, keepdims=True)[:, :length]


def _attend_kernel(blocks, *, itself):
  layout = blocks.layout
  query, key, value, *before = blocks.sources
  (out,) = blocks.sinks
  *lse_before, lse = blocks.statistics

  def begin_group(group):
    lines = zip(query.read(group, layout.dtype), key.read(group, layout.dtype), strict=True)
    return [_scores(*line, 0, itself) for line in lines]

  def end_group(group, scores):
    lines = zip(
      scores,
      value.read(group, layout.dtype),
      before[0].read(group, jnp.float32) if before else [None] * layout.group,
      strict=True,
    )
    outs = []
    for i, line in enumerate(lines):
      at = (0, group * layout.group + i)
      line_out, lse[at] = _attend_line(
        *line, lse_before[0][at] if before else None, blocks.turn(at[1])
      )
      outs.append(line_out)
    out.write(group, outs)

  def end_group_by_blocks(group, begun):
    del begun
    for i in range(layout.group):
      copies, (total,) = blocks.copies[i], blocks.totals[i]
      for copy, source in zip(copies, (query, key, value), strict=False):
        copy[...] = source.read(group, layout.dtype)[i]
      if before:
        total[...] = before[0].read(group, jnp.float32)[i]
      queries, keys, values = copies[:3]
      line = group * layout.group + i

      def attend_block(
        start, some, line=line, queries=queries, keys=keys, values=values, total=total
      ):
        total[some], lse[0, line, :, some] = _attend_line(
          _scores(queries[some], keys[...], start, itself),
          values[...],
          total[some] if before else None,
          lse_before[0][0, line, :, some] if before else None,
          blocks.turn(0),
        )

      layout.for_blocks(attend_block)
    out.write(group, [total[...] for (total,) in blocks.totals])

  if layout.queries < layout.length:
    layout.for_groups(lambda group: None, end_group_by_blocks)
  else:
    layout.for_groups(begin_group, end_group)
  out.finish()


def _attend_vjp_kernel(blocks, *, itself):
  layout = blocks.layout
  lse, delta = blocks.statistics
  makes_delta = blocks.written
  maps = blocks.sources[: 4 + makes_delta]
  before = blocks.sources[len(maps) :]

  def begin_group(group):
    lines = zip(*(x.read(group, layout.dtype) for x in maps), strict=True)
    return [
      (_scores(query, key, 0, itself), _dot(value, cotangent, 1, 1), query, key, cotangent, *out)
      for query, key, value, cotangent, *out in lines
    ]

  def end_group(group, begun):
    gradients = []
    for i, (scores, weight_gradient, query, key, cotangent, *out) in enumerate(begun):
      at = (0, group * layout.group + i)
      turn = blocks.turn(at[1])
      if makes_delta:
        delta[at] = _delta_line(*out, cotangent, turn)
      gradients.append(
        _attend_line_vjp(scores, weight_gradient, query, key, cotangent, lse[at], delta[at], turn)
      )
    for n, sink in enumerate(blocks.sinks):
      parts = [gradient[n] for gradient in gradients]
      if before:
        earlier = before[n].read(group, jnp.float32)
        parts = [a + b for a, b in zip(parts, earlier, strict=True)]
      sink.write(group, parts)

  def end_group_by_blocks(group, begun):
    del begun
    for i in range(layout.group):
      copies, totals = blocks.copies[i], blocks.totals[i]
      for copy, source in zip(copies, maps, strict=False):
        copy[...] = source.read(group, layout.dtype)[i]
      for n, total in enumerate(totals):
        total[...] = before[n].read(group, jnp.float32)[i] if before else jnp.zeros_like(total)
      line = group * layout.group + i

      def attend_block(start, some, line=line, copies=copies, totals=totals):
        query, key, value, cotangent, *out = copies
        cotangents = cotangent[some]
        if makes_delta:
          delta[0, line, :, some] = _delta_line(out[0][some], cotangents, blocks.turn(0))
        of_query, of_key, of_value = _attend_line_vjp(
          _scores(query[some], key[...], start, itself),
          _dot(value[...], cotangents, 1, 1),
          query[some],
          key[...],
          cotangents,
          lse[0, line, :, some],
          delta[0, line, :, some],
          blocks.turn(0),
        )
        totals[0][some] += of_query
        totals[1][...] += of_key
        totals[2][...] += of_value

      layout.for_blocks(attend_block)
    for n, sink in enumerate(blocks.sinks):
      sink.write(group, [totals[n][...] for totals in blocks.totals])

  if layout.queries < layout.length:
    layout.for_groups(lambda group: None, end_group_by_blocks)
  else:
    layout.for_groups(begin_group, end_group)
  for sink in blocks.sinks:
    sink.finish()


class _Blocks:
  """What a kernel reads and writes in one step.

  Attributes:
    layout: of the maps.
    sources: input maps.
    statistics: those that are read, then those that are written.
    written: how many statistics are written.
    sinks: output maps.
    copies: of the input maps, for one line each of a group, where lines are taken by blocks.
    totals: likewise of the output maps, in float32.
  """

  def __init__(self, layout, sources, statistics, sinks, written, refs):
    refs = iter(refs)
    self.layout, self.written = layout, written
    maps = [[next(refs) for _ in range(layout.slabs(channels))] for channels in sources]
    self.statistics = [next(refs) for _ in range(statistics)]
    outs = [next(refs) for _ in sinks]
    self.statistics += [next(refs) for _ in range(written)]
    self._turns = next(refs)
    self.sources = [
      _Source(layout, blocks, next(refs) if layout.copied(channels) else None)
      for blocks, channels in zip(maps, sources, strict=True)
    ]
    self.sinks = [_Sink(layout, ref, next(refs) if layout.columns else None) for ref in outs]
    self.copies, self.totals = [], []
    for _ in range(layout.group if layout.queries < layout.length else 0):
      self.copies.append([next(refs) for _ in sources])
      self.totals.append([next(refs) for _ in sinks])

  def turn(self, line):
    """Scratch in which a line's scores are transposed."""
    return self._turns.at[line % self._turns.shape[0]]


def _cost(query, value, layout, *, products):
  """FLOPs and exponentials of products over query channels and over value channels."""
  scores = math.prod(layout.shape) * layout.length
  channels = products[0] * query.shape[-1] + products[1] * value.shape[-1]
  return 2 * scores * channels, scores


def _call(
  kernel: Callable[..., None],
  layout: _Layout,
  maps: Sequence[jax.Array],
  statistics: Sequence[jax.Array],
  *,
  like: Sequence[jax.Array],
  written: int,
  cost: tuple[int, int],
  name: str,
  interpret: bool,
) -> tuple[list[jax.Array], list[jax.Array]]:
  """Runs a kernel over all strips.

  Args:
    kernel: on `_Blocks`.
    layout: of the maps.
    maps: inputs `[batch, *positions, channels]`.
    statistics: inputs `[batch, *positions]`.
    like: output maps have these shapes and dtypes.
    written: number of output statistics.
    cost: FLOPs and transcendentals.
    name: of the kernel.
    interpret: whether to run in the interpreter.

  Returns:
    Output maps and output statistics.
  """
  sources = [x.shape[-1] for x in maps]
  sinks = [x.shape[-1] for x in like]
  planes, count = layout.sizes
  axes = [jax.typeof(x).manual_axis_type.varying for x in (*maps, *statistics)]

  by_blocks = layout.queries < layout.length
  turns = 1 if by_blocks else 4
  lines = [
    *(pltpu.VMEM((layout.length, channels), layout.dtype) for channels in sources),
    *(pltpu.VMEM((layout.length, channels), jnp.float32) for channels in sinks),
  ] * (layout.group if by_blocks else 0)

  def wrapped(*refs):
    kernel(_Blocks(layout, sources, len(statistics), sinks, written, refs))

  # Inside shard_map, results vary over the mesh axes that any argument varies over.
  varying = jax.sharding.ManualAxisType(varying=frozenset().union(*axes))
  struct = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=varying)
  moved = sum(x.size * x.dtype.itemsize for x in (*maps, *statistics, *like))
  results = pl.pallas_call(
    wrapped,
    grid=layout.grid,
    in_specs=[
      *(
        layout.block(channels // layout.slabs(channels), slab)
        for channels in sources
        for slab in range(layout.slabs(channels))
      ),
      *(layout.statistic_block for _ in statistics),
    ],
    out_specs=[
      *(layout.block(channels) for channels in sinks),
      *(layout.statistic_block for _ in range(written)),
    ],
    out_shape=[
      *(struct(layout.map_shape(x.shape[-1]), x.dtype) for x in like),
      *(struct((planes, count, 1, layout.length), jnp.float32) for _ in range(written)),
    ],
    scratch_shapes=[
      # Eight rows more than keys, for what is turned along.
      pltpu.VMEM((turns, layout.score_shape[0] + 8, layout.score_shape[1]), jnp.float32),
      *(layout.words(channels) for channels in sources if layout.copied(channels)),
      *(layout.words(channels) for channels in sinks if layout.columns),
      *lines,
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel'), vmem_limit_bytes=_LIMIT_BYTES
    ),
    cost_estimate=pl.CostEstimate(flops=cost[0], transcendentals=cost[1], bytes_accessed=moved),
    interpret=interpret,
    name=f'{name}_{"columns" if layout.columns else "rows"}',
  )(
    *(
      x.reshape(layout.map_shape(channels))
      for x, channels in zip(maps, sources, strict=True)
      for _ in range(layout.slabs(channels))
    ),
    *(layout.statistic_of(x) for x in statistics),
  )
  outs = [x.reshape(y.shape) for x, y in zip(results, like, strict=False)]
  return outs, [layout.from_statistic(x) for x in results[len(like) :]]
