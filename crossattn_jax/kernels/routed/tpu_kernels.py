"""What a grid step of the TPU kernels of routed attention does; `tpu` says which step gets what.

Scores are computed transposed, keys by queries: maxima and sums over keys are then element-wise
work instead of reductions across lanes, the softmax's denominators lie along lanes, and the
weights enter the second product as its stationary operand, where a head costs as many rows as it
has channels. All heads of 128 channels share their products: the queries of one head have zeros in
the channels of the others, which the 128 deep contraction of the matrix unit does anyway.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from crossattn_jax.kernels import pipelining

LANES = 128
# A multiple of the rows of a tile in float32 (8) and in bfloat16 (16).
ROWS = 16
# Queries whose scores are in one matrix.
UNIT_ROWS = 256
# Keys of a task, whose scores with the queries of a unit are in one matrix.
TASK_KEYS = 256
# Tasks that begin before one ends.
AHEAD = 6
AHEAD_OF_GRADIENTS = 3
HIDDEN = -1e30
LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Heads:
  """How heads share products.

  Attributes:
    count: of heads.
    qk_width: channels of a head's queries and keys.
    width: channels of a head's values.
  """

  count: int
  qk_width: int
  width: int

  def groups(self) -> list[range]:
    """Heads whose channels begin and end at tiles, so that slices of them are free."""
    for size in range(1, self.count):
      if size * self.qk_width % LANES == 0 and size * self.width % LANES == 0:
        return [range(start, min(start + size, self.count)) for start in range(0, self.count, size)]
    return [range(self.count)]


@dataclasses.dataclass(frozen=True)
class _Unit:
  """Queries whose scores are in one matrix: tokens of one head, or all tokens of several.

  Attributes:
    group: the heads whose channels take part.
    heads: of the queries.
    start: first token.
    stop: after the last token.
  """

  group: range
  heads: range
  start: int
  stop: int

  @property
  def rows(self) -> int:
    """Queries of all heads."""
    return len(self.heads) * (self.stop - self.start)

  def channels(self, width: int) -> slice:
    """The group's channels, at `width` a head."""
    return slice(self.group.start * width, self.group.stop * width)

  def stack(self, x: jax.Array, width: int) -> jax.Array:
    """`[tokens, channels]` -> `[heads * tokens, channels of the group]`, zero in other heads."""
    x = x[self.start : self.stop, self.channels(width)]
    if len(self.group) == 1:
      return x
    channel = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    own = [
      (channel >= (h - self.group.start) * width) & (channel < (h - self.group.start + 1) * width)
      for h in self.heads
    ]
    return jnp.concatenate([jnp.where(each, x, jnp.zeros_like(x)) for each in own])


@dataclasses.dataclass(frozen=True)
class Plan:
  """What the kernels of one call need to know beside the arrays.

  Attributes:
    form: 'dense', 'resident' or 'streamed'.
    heads: of queries, keys and values.
    scale: of the scores.
    top_k: key regions of a query region.
    key_regions: of the image.
    tokens: of a query region, padding included.
    key_tokens: of a key region, padding included.
    padding: of the tokens of a key region.
    block: query regions of a grid step.
    masked: whether there is a key mask.
    biased: whether there is a bias of the scores; only in the dense form, of a single region.
    channels_first: whether regions are `[channels, tokens]` in memory, as XLA likes them where it
      would have to pad channels to 128.
  """

  form: str
  heads: Heads
  scale: float
  top_k: int
  key_regions: int
  tokens: int
  key_tokens: int
  padding: int
  block: int
  masked: bool
  biased: bool
  channels_first: bool

  @property
  def key_operands(self) -> int:
    """How many operands the keys are."""
    return self.top_k if self.form == 'streamed' else 1

  @property
  def keys(self) -> int:
    """That the queries of a region are scored with."""
    return self.key_tokens * (1 if self.form == 'dense' else self.top_k)

  @property
  def one_head_a_unit(self) -> bool:
    """Whether heads have enough queries to fill the lanes."""
    return self.tokens >= LANES or self.form == 'dense'

  def load(self, *parts: jax.Array, channels_first: bool = False) -> jax.Array:
    """Tokens of regions, `[tokens, channels]` or the other way round, as one matrix."""
    if self.form == 'dense':
      parts = [
        part.astype(jnp.float32).reshape(-1, part.shape[-1]).astype(part.dtype) for part in parts
      ]
    axis = 1 if self.channels_first else 0
    joined = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)
    return joined if channels_first == self.channels_first else joined.T

  def store(self, x: jax.Array, ref: Any, channels_first: bool = False) -> jax.Array:
    """`[tokens, channels]`, or the other way round, as a region of `ref` wants it."""
    x = x if channels_first == self.channels_first else x.T
    if self.form == 'dense':
      x = x.astype(jnp.float32).reshape(ref.shape[1:])
    return x.astype(ref.dtype)

  @property
  def units(self) -> list[_Unit]:
    """The units of a region's queries."""
    tokens, units = self.tokens, []
    for group in self.heads.groups():
      if self.one_head_a_unit:
        for h in group:
          for start in range(0, tokens, UNIT_ROWS):
            stop = min(start + UNIT_ROWS, tokens)
            units.append(_Unit(group, range(h, h + 1), start, stop))
      else:
        size = UNIT_ROWS // tokens
        for h in range(group.start, group.stop, size):
          units.append(_Unit(group, range(h, min(h + size, group.stop)), 0, tokens))
    return units


def _product(a: jax.Array, b: jax.Array, contract: tuple[int, int], **options: Any) -> jax.Array:
  dimensions = (((contract[0],), (contract[1],)), ((), ()))
  return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32, **options)


def _scores(plan, unit, keys, query, seen, bias=None):
  """`[keys, rows]`, as `bias`, in units in which the softmax is a power of two."""
  rows = unit.stack(query, plan.heads.qk_width)
  scores = _product(keys[:, unit.channels(plan.heads.qk_width)], rows, (1, 1))
  scores *= plan.scale * LOG2_E
  scores = scores if bias is None else scores + bias
  return scores if seen is None else jnp.where(_columns(seen, unit) > 0, scores, HIDDEN)


def _columns(seen: jax.Array, unit: _Unit) -> jax.Array:
  return seen if seen.shape[1] == 1 else seen[:, unit.start : unit.stop]


def _sum_keys(plan, unit, keys, weights, width, *more):
  """The transposed sums of keys (or values) by their weights.

  Args:
    plan: of the call.
    unit: of the queries.
    keys: transposed, `[channels, keys]`.
    weights: `[keys, rows]`.
    width: channels of a head.
    *more: rows below those of `keys`.

  Returns:
    `[channels of the head if there is one a unit, else of the group, rows]`.
  """
  own = unit.heads if plan.one_head_a_unit else unit.group
  keys = keys[own.start * width : own.stop * width]
  return _product(jnp.concatenate([keys, *more]), weights, (1, 0))


def _collect(plan: Plan, sums: list[jax.Array], width: int) -> jax.Array:
  """A region from the transposed results of its units.

  Args:
    plan: of the call.
    sums: what `_sum_keys` gave for each.
    width: channels of a head.

  Returns:
    `[channels, tokens]` if there is one head a unit, else `[tokens, channels]`.
  """
  units = plan.units
  groups = []
  for group in dict.fromkeys(unit.group for unit in units):
    of_group = [each for each in zip(units, sums, strict=True) if each[0].group == group]
    if plan.one_head_a_unit:
      of_heads = [
        jnp.concatenate([x for unit, x in of_group if unit.heads.start == h], axis=1) for h in group
      ]
      groups += of_heads
      continue
    total = 0.0
    for unit, x in of_group:
      rows = x.T
      channel = lax.broadcasted_iota(jnp.int32, (unit.stop, rows.shape[1]), 1)
      for i, h in enumerate(unit.heads):
        first = (h - group.start) * width
        own = (channel >= first) & (channel < first + width)
        total += jnp.where(own, rows[i * unit.stop : (i + 1) * unit.stop], 0.0)
    groups.append(total)
  axis = 0 if plan.one_head_a_unit else 1
  return groups[0] if len(groups) == 1 else jnp.concatenate(groups, axis=axis)


def _lanes(unit: _Unit, tokens: int) -> slice:
  """Where the queries of a unit are among `heads * tokens`."""
  start = unit.heads.start * tokens + unit.start
  return slice(start, start + unit.rows)


def _bias_of(ref: Any, unit: _Unit, keys: slice) -> jax.Array | None:
  """The bias of a unit, which has one head: `[keys, rows]` of `[heads, keys, queries]`."""
  return None if ref is None else ref[unit.heads.start, keys, unit.start : unit.stop]


def split_keys(keys: int) -> list[slice]:
  """The keys of the tasks of a unit."""
  return [slice(start, min(start + TASK_KEYS, keys)) for start in range(0, keys, TASK_KEYS)]


class _Regions:
  """The routed keys, values and their visibility of the query regions of a grid step."""

  def __init__(self, plan: Plan, routing_ref: Any, operands: list[Any]):
    self.plan, self.routing_ref = plan, routing_ref
    self.keys = operands[: plan.key_operands]
    self.values = operands[plan.key_operands : 2 * plan.key_operands]
    self.masks = operands[2 * plan.key_operands :]

  def index(self, region: int, choice: int) -> jax.Array:
    """The key region that is a query region's choice."""
    first = (pl.program_id(1) * self.plan.block + region) * self.plan.top_k
    return self.routing_ref[0, 0, first + choice]

  def own(self, ref: Any, region: int) -> jax.Array:
    """A query region; in the dense form all of them."""
    return ref[0] if self.plan.form == 'dense' else ref[0, region]

  def put(self, ref: Any, region: int, x: jax.Array) -> None:
    """Writes what `_collect` gave for a query region."""
    x = self.plan.store(x, ref, channels_first=self.plan.one_head_a_unit)
    ref[0, slice(None) if self.plan.form == 'dense' else region] = x

  def parts(self, refs: list[Any], region: int) -> list[jax.Array]:
    """The regions of keys, values or mask that a query region attends to."""
    if self.plan.form == 'dense':
      return [refs[0][0]]
    if self.plan.form == 'streamed':
      return [ref[0, 0] for ref in refs]
    return [refs[0][0, self.index(region, j)] for j in range(self.plan.top_k)]

  def seen(self, region: int) -> jax.Array | None:
    """How often a query sees a key: `[keys, 1 or queries]`; None where all see all once."""
    seen = None
    if self.plan.masked:
      parts = self.parts(self.masks, region)
      seen = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    elif self.plan.padding:
      seen = _not_padding(self.plan, self.plan.top_k)
    if self.plan.form == 'dense' and not self.plan.biased:
      named = _named(self.plan, self.routing_ref[0])
      seen = named if seen is None else named * seen
    return seen


def _not_padding(plan: Plan, regions: int) -> jax.Array:
  """Ones for the keys of some regions, zeros for their padding: `[keys, 1]`."""
  token = lax.broadcasted_iota(jnp.int32, (plan.key_tokens, 1), 0)
  of_region = (token < plan.key_tokens - plan.padding).astype(jnp.float32)
  return jnp.concatenate([of_region] * regions) if regions > 1 else of_region


def _named(plan: Plan, routing: jax.Array) -> jax.Array:
  """How often the region of a key is named by that of a query, `[keys, queries]`.

  Args:
    plan: of the dense form.
    routing: `[top_k, regions]`.
  """
  queries, keys, key_regions = plan.tokens, plan.key_tokens, plan.key_regions
  top_k, regions = routing.shape
  index = lax.broadcasted_iota(jnp.int32, (key_regions, regions), 0)
  named = sum((routing[j : j + 1] == index).astype(jnp.float32) for j in range(top_k))

  def belongs(shape: tuple[int, int], token_axis: int, tokens: int) -> jax.Array:
    token = lax.broadcasted_iota(jnp.int32, shape, token_axis)
    first = lax.broadcasted_iota(jnp.int32, shape, 1 - token_axis) * tokens
    return ((token >= first) & (token < first + tokens)).astype(jnp.bfloat16)

  # Whole numbers up to 256 are exact in bfloat16.
  of_queries = _product(
    named.astype(jnp.bfloat16), belongs((regions, queries), 1, queries // regions), (1, 0)
  ).astype(jnp.bfloat16)
  return _product(belongs((keys, key_regions), 0, keys // key_regions), of_queries, (1, 0))


def forward_kernel(plan: Plan, *refs: Any) -> None:
  """The result and the log-sum-exp of the query regions of a step."""
  routing_ref, query_ref, *operands, out_ref, log_sum_ref = refs
  bias_ref = operands.pop() if plan.biased else None
  regions = _Regions(plan, routing_ref, operands)
  units, width, splits = plan.units, plan.heads.width, split_keys(plan.keys)
  loaded, unfinished, sums = {}, [], {}

  def begin(task: tuple[int, _Unit, slice]) -> jax.Array:
    region, unit, some = task
    if region not in loaded:
      loaded[region] = (
        plan.load(regions.own(query_ref, region)),
        plan.load(*regions.parts(regions.keys, region)),
        plan.load(*regions.parts(regions.values, region), channels_first=True),
        regions.seen(region),
      )
    query, keys, _, seen = loaded[region]
    bias = _bias_of(bias_ref, unit, some)
    return _scores(plan, unit, keys[some], query, None if seen is None else seen[some], bias)

  def end(task: tuple[int, _Unit, slice], scores: jax.Array) -> None:
    region, unit, some = task
    _, _, values, seen = loaded[region]
    largest = jnp.max(scores, axis=0, keepdims=True)
    if some != splits[0]:
      largest_before, rows_before = unfinished.pop()
      largest = jnp.maximum(largest, largest_before)
    weights = jnp.exp2(scores - largest)
    if seen is not None:
      weights *= _columns(seen, unit)[some]
    # Ones below the values sum the weights.
    ones = jnp.ones((ROWS, len(weights)), values.dtype)
    weights = weights.astype(values.dtype)
    rows = _sum_keys(plan, unit, values[:, some], weights, width, ones)
    if some != splits[0]:
      rows += rows_before * jnp.exp2(largest_before - largest)
    if some != splits[-1]:
      unfinished.append((largest, rows))
      return
    total = rows[-ROWS : 1 - ROWS]
    total = jnp.where(total == 0, 1.0, total)
    sums.setdefault(region, []).append(rows[:-ROWS] / total)
    log_sum_ref[0, 0, region : region + 1, _lanes(unit, plan.tokens)] = (
      largest + jnp.log2(total)
    ) / LOG2_E
    if unit is units[-1]:
      regions.put(out_ref, region, _collect(plan, sums.pop(region), width))

  tasks = [
    (region, unit, some) for region in range(plan.block) for unit in units for some in splits
  ]
  pipelining.pipelined(tasks, begin, end, AHEAD)


def _differences(begun, log_sum, mean, columns, dtype):
  """Weights, and in float32 gradients of the scores but for their scale: `[keys, rows]`."""
  scores, d_weights = begun
  weights = jnp.exp2(scores - log_sum * LOG2_E)
  if columns is not None:
    # Not a product: of a query that sees no key, the weights may be infinite.
    weights = jnp.where(columns > 0, weights * columns, 0.0)
  return weights.astype(dtype), weights * (d_weights - mean)


def _row_sums(rows: jax.Array) -> jax.Array:
  """Sums over channels, `[1, rows]`."""
  ones = jnp.ones((8, rows.shape[1]), rows.dtype)
  return _product(ones, rows, (1, 1), precision=lax.Precision.HIGHEST)[:1]


def backward_kernel(plan: Plan, *refs: Any) -> None:
  """Gradients of the queries; unless streamed, of keys and values too, summed in VMEM."""
  routing_ref, query_ref, d_out_ref, out_ref, log_sum_ref, *refs = refs
  operands = refs[: (3 if plan.masked else 2) * plan.key_operands]
  refs = refs[len(operands) :]
  bias_ref = refs.pop(0) if plan.biased else None
  d_query_ref, *refs = refs
  regions = _Regions(plan, routing_ref, operands)
  units, heads = plan.units, plan.heads
  loaded, sums = {}, {}
  if plan.form == 'streamed':
    (mean_ref,) = refs
  else:
    d_key_ref, d_value_ref, *totals = refs
    d_bias_ref = totals.pop(0) if plan.biased else None

    @pl.when(pl.program_id(1) == 0)
    def _():
      for total in totals:
        total[...] = jnp.zeros_like(total)

    if plan.biased:

      @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
      def _():
        d_bias_ref[...] = jnp.zeros_like(d_bias_ref)

  def begin(task: tuple[int, _Unit]) -> tuple[jax.Array, jax.Array]:
    region, unit = task
    if unit is units[0]:
      d_out = plan.load(regions.own(d_out_ref, region))
      out = plan.load(regions.own(out_ref, region))
      keys = regions.parts(regions.keys, region)
      loaded[region] = {
        'query': plan.load(regions.own(query_ref, region)),
        'd_out': d_out,
        'means': d_out.astype(jnp.float32) * out.astype(jnp.float32),
        'keys': plan.load(*keys),
        'keys_t': plan.load(*keys, channels_first=True),
        'values': plan.load(*regions.parts(regions.values, region)),
        'seen': regions.seen(region),
      }
    of = loaded[region]
    bias = _bias_of(bias_ref, unit, slice(None))
    return (
      _scores(plan, unit, of['keys'], of['query'], of['seen'], bias),
      _product(
        of['values'][:, unit.channels(heads.width)], unit.stack(of['d_out'], heads.width), (1, 1)
      ),
    )

  def end(task: tuple[int, _Unit], begun: tuple[jax.Array, jax.Array]) -> None:
    region, unit = task
    of, lanes = loaded[region], _lanes(unit, plan.tokens)
    mean = _row_sums(unit.stack(of['means'], heads.width))
    log_sum = log_sum_ref[0, 0, region : region + 1, lanes]
    columns = None if of['seen'] is None else _columns(of['seen'], unit)
    weights, d_scores = _differences(begun, log_sum, mean, columns, of['query'].dtype)
    if plan.biased:
      d_bias_ref[unit.heads.start, :, unit.start : unit.stop] += d_scores
    d_scores = d_scores.astype(of['query'].dtype)
    d_query = _sum_keys(plan, unit, of['keys_t'], d_scores, heads.qk_width)
    sums.setdefault(region, []).append(d_query)
    if plan.form == 'streamed':
      mean_ref[0, 0, region : region + 1, lanes] = mean
    else:
      add(region, unit, totals[0], d_scores, of['query'], heads.qk_width)
      add(region, unit, totals[1], weights, of['d_out'], heads.width)
    if unit is units[-1]:
      d_query = _collect(plan, sums.pop(region), heads.qk_width) * plan.scale
      regions.put(d_query_ref, region, d_query)

  def add(region, unit, total_ref, weights, x, width):
    update = _product(weights, unit.stack(x, width), (1, 0))
    channels = unit.channels(width)
    if plan.form == 'dense':
      total_ref[:, channels] += update
      return
    key_tokens = plan.key_tokens
    for j in range(plan.top_k):
      rows = update[j * key_tokens : (j + 1) * key_tokens]
      total_ref[regions.index(region, j), :, channels] += rows

  pipelining.pipelined(
    [(region, unit) for region in range(plan.block) for unit in units], begin, end
  )

  if plan.form != 'streamed':

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
      for ref, total in ((d_key_ref, totals[0][...] * plan.scale), (d_value_ref, totals[1][...])):
        ref[0] = total.astype(ref.dtype).reshape(ref.shape[1:])


def edges_kernel(plan: Plan, fused: bool, *refs: Any) -> None:
  """Gradients of keys and values, for edges that are sorted by key region.

  An edge is a query region and a key region that it names. Fused, gradients of the queries too:
  written where a region names one, else summed in VMEM.
  """
  key_of, query_of, query_ref, d_out_ref, log_sum_ref, *refs = refs
  # The query kernel leaves the means; without it they are made from the result.
  mean_or_out_ref, key_ref, value_ref, *refs = refs
  seen = _not_padding(plan, 1) if plan.padding else None
  seen = refs.pop(0)[0, 0] if plan.masked else seen
  d_key_ref, d_value_ref, *refs = refs
  d_query_ref = refs.pop(0) if fused else None
  totals, refs = refs[:2], refs[2:]
  heads, splits = plan.heads, split_keys(plan.key_tokens)
  place, count = pl.program_id(1), pl.num_programs(1)
  edge = pl.program_id(0) * count + place
  key_region = key_of[edge]
  first = (place == 0) | (key_of[jnp.maximum(edge - 1, 0)] != key_region)
  last = (place == count - 1) | (key_of[edge + 1] != key_region)

  @pl.when(first)
  def _():
    for total in totals:
      total[...] = jnp.zeros_like(total)

  load_first = functools.partial(plan.load, channels_first=True)
  keys, values = plan.load(key_ref[0, 0]), plan.load(value_ref[0, 0])
  query, d_out = plan.load(query_ref[0, 0]), plan.load(d_out_ref[0, 0])
  if plan.one_head_a_unit:
    query_t, d_out_t = load_first(query_ref[0, 0]), load_first(d_out_ref[0, 0])
  if fused:
    keys_t, out_t = load_first(key_ref[0, 0]), load_first(mean_or_out_ref[0, 0])
  means, sums = {}, {}

  def begin(task: tuple[_Unit, slice]) -> tuple[jax.Array, jax.Array]:
    unit, some = task
    d_rows = unit.stack(d_out, heads.width)
    return (
      _scores(plan, unit, keys[some], query, None if seen is None else seen[some]),
      _product(values[some, unit.channels(heads.width)], d_rows, (1, 1)),
    )

  def end(task: tuple[_Unit, slice], begun: tuple[jax.Array, jax.Array]) -> None:
    unit, some = task
    lanes, tokens = _lanes(unit, plan.tokens), slice(unit.start, unit.stop)
    own = lambda width: slice(unit.heads.start * width, unit.heads.stop * width)
    if unit not in means:
      if fused:
        parts = (x[own(heads.width), tokens].astype(jnp.float32) for x in (d_out_t, out_t))
        means[unit] = jnp.sum(math.prod(parts), axis=0, keepdims=True)
      else:
        means[unit] = mean_or_out_ref[0, 0, :, lanes]
    weights, d_scores = _differences(
      begun,
      log_sum_ref[0, 0, :, lanes],
      means[unit],
      None if seen is None else _columns(seen, unit)[some],
      query.dtype,
    )
    d_scores = d_scores.astype(query.dtype)
    if fused:
      part = _sum_keys(plan, unit, keys_t[:, some], d_scores, heads.qk_width)
      sums[unit] = sums[unit] + part if unit in sums else part
    if plan.one_head_a_unit:
      for total, rows, x, width in (
        (totals[0], d_scores, query_t, heads.qk_width),
        (totals[1], weights, d_out_t, heads.width),
      ):
        total[own(width), some] += _product(x[own(width), tokens], rows, (1, 1))
    else:
      for total, rows, x, width in (
        (totals[0], d_scores, query, heads.qk_width),
        (totals[1], weights, d_out, heads.width),
      ):
        total[some, unit.channels(width)] += _product(rows, unit.stack(x, width), (1, 0))

  tasks = [(unit, some) for unit in plan.units for some in splits]
  pipelining.pipelined(tasks, begin, end, AHEAD_OF_GRADIENTS)

  if fused:
    d_query = _collect(plan, list(sums.values()), heads.qk_width)
    if plan.top_k == 1:
      d_query_ref[0, 0] = plan.store(d_query * plan.scale, d_query_ref, channels_first=True)
    else:
      _add_to_queries(refs, d_query_ref, query_of[edge], d_query)

  @pl.when(last)
  def _():
    for ref, total in ((d_key_ref, totals[0][...] * plan.scale), (d_value_ref, totals[1][...])):
      ref[0, 0] = plan.store(total, ref, channels_first=plan.one_head_a_unit)


def _add_to_queries(scratch: list[Any], ref: Any, code: jax.Array, d_query: jax.Array) -> None:
  """Adds an edge's part to the gradient of its query region; `code` is of `_sort_edges`."""
  totals, semaphore = scratch
  region, is_first = code >> 1, code & 1
  totals[region] = jnp.where(is_first == 1, 0.0, totals[region]) + d_query
  image, last = pl.program_id(0), pl.program_id(1) == pl.num_programs(1) - 1

  @pl.when(last)
  def _():
    copy = pltpu.make_async_copy(totals, ref.at[image], semaphore)
    copy.start()
    copy.wait()


def fill_kernel(named: Any, *refs: Any) -> None:
  """Writes zeros to the regions that are not named."""
  _, _, *results, zeros, other_zeros, semaphore = refs
  for zero in (zeros, other_zeros):
    zero[...] = jnp.zeros_like(zero)

  def fill(region: jax.Array, carry: None) -> None:
    @pl.when(named[region] == 0)
    def _():
      for zero, result in zip((zeros, other_zeros), results, strict=True):
        copy = pltpu.make_async_copy(zero, result.at[region], semaphore)
        copy.start()
        copy.wait()

    return carry

  lax.fori_loop(0, results[0].shape[0], fill, None)
