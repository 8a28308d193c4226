"""Criss-cross attention for NVIDIA GPUs: Triton kernels whose programs take a block of one line.

Rows and columns differ only in the stride between positions, so that the same kernels serve every
axis. Where a line is one tile, one program makes all of its gradients from one computation of the
scores. Longer lines have a kernel for each gradient, which computes them anew. None adds to memory
that another program writes.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp

from crossattn_jax.kernels.criss_cross import xla

_MASKED = -1e30
_STAGES = 2
# Positions of the longest line that is one tile of the gradients, and of other tiles.
_LONGEST_TILE = 128
_TILE = 64
# Of a slab of values where a tile is a line: the registers hold all weights too.
_LINE_SLAB_BYTES = 16384
# What every recent GPU lends to one program, and what some do by their compute capability (CUDA
# programming guide, technical specifications).
SHARED_BYTES = 99 * 2**10
_MORE_SHARED_BYTES = {'8.0': 163 * 2**10, '9.0': 227 * 2**10, '10.0': 227 * 2**10}


def attend(query, key, value, previous=None, *, axis, itself, interpret=False):
  """See `passes.attend`. Channels that do not fit in shared memory are left to XLA."""
  tiling = Tiling.of(query, value, axis, itself)
  if tiling is None:
    return xla.attend(query, key, value, previous, axis=axis, itself=itself)
  out, lse = _call(
    functools.partial(_attend_kernel, tiling=tiling),
    tiling,
    [query, key, value, *(previous or ())],
    [value.shape, query.shape[:-1]],
    slabs=tiling.slabs,
    products=(1, 1),
    name='criss_cross',
    interpret=interpret,
  )
  return out, lse


def attend_vjp(
  query, key, value, lse, cotangent, out, delta, previous, *, axis, itself, interpret=False
):
  """See `passes.attend_vjp`. Channels that do not fit in shared memory are left to XLA."""
  tiling = Tiling.of(query, value, axis, itself)
  if tiling is None:
    return xla.attend_vjp(
      query, key, value, lse, cotangent, out, delta, previous, axis=axis, itself=itself
    )
  if delta is None:
    delta = jnp.einsum('...c,...c->...', out.astype(lse.dtype), cotangent.astype(lse.dtype))
  line = tiling.whole_lines()
  if line is not None:
    gradients = _call(
      functools.partial(_gradients_kernel, tiling=line),
      line,
      [query, key, value, lse, cotangent, delta, *(previous or ())],
      [query.shape, key.shape, value.shape],
      slabs=1,
      products=(3, 2),
      name='gradients',
      interpret=interpret,
    )
    return tuple(gradients), delta
  kernels = (
    (_query_gradient_kernel, query, 1, (2, 1)),
    (_key_gradient_kernel, key, 1, (2, 1)),
    (_value_gradient_kernel, value, tiling.slabs, (1, 1)),
  )
  gradients = []
  for n, (kernel, like, slabs, products) in enumerate(kernels):
    (gradient,) = _call(
      functools.partial(kernel, tiling=tiling),
      tiling,
      [query, key, value, lse, cotangent, delta, *(previous[n : n + 1] if previous else ())],
      [like.shape],
      slabs=slabs,
      products=products,
      name=kernel.__name__.strip('_').removesuffix('_kernel'),
      interpret=interpret,
    )
    gradients.append(gradient)
  return tuple(gradients), delta


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How maps whose lines lie along an axis are split over programs.

  Attributes:
    before: positions before the axis, the batch included.
    length: of a line.
    after: positions after the axis: the stride between those of a line.
    channels: of queries and keys, and of values.
    dtype: of the maps.
    itself: whether a position meets itself.
    block: positions of a tile.
    slab: value channels of a tile.
  """

  before: int
  length: int
  after: int
  channels: tuple[int, int]
  dtype: jnp.dtype
  itself: bool
  block: int
  slab: int

  @classmethod
  def of(cls, query: jax.Array, value: jax.Array, axis: int, itself: bool) -> 'Tiling | None':
    """The largest tiles that fit in shared memory, or None where none do."""
    tiling = cls(
      before=math.prod(query.shape[:axis]),
      length=query.shape[axis],
      after=math.prod(query.shape[axis + 1 : -1]),
      channels=(query.shape[-1], value.shape[-1]),
      dtype=jnp.dtype(query.dtype),
      itself=itself,
      block=min(_TILE, _power_of_two(query.shape[axis])),
      slab=min(128, _power_of_two(value.shape[-1])),
    )
    while tiling.block > 16 and tiling.shared_bytes > SHARED_BYTES:
      tiling = dataclasses.replace(tiling, block=tiling.block // 2)
    return tiling if tiling.shared_bytes <= SHARED_BYTES else None

  def whole_lines(self) -> 'Tiling | None':
    """Tiles of a line each, for `_gradients_kernel`, or None where they do not fit."""
    block = _power_of_two(self.length)
    slab = max(16, min(self.slab, _LINE_SLAB_BYTES // (block * self.dtype.itemsize)))
    line = dataclasses.replace(self, block=block, slab=slab)
    fits = block <= _LONGEST_TILE and line.line_bytes <= _shared_bytes_here()
    return line if fits else None

  @property
  def line_bytes(self) -> int:
    """Shared memory of `_gradients_kernel`.

    Queries and keys, with the slabs of two maps, or with the weights and the scores' gradients.
    """
    narrow, wide, square = (
      self.block * size * self.dtype.itemsize for size in (self.width, self.slab, self.block)
    )
    return 2 * narrow + max(2 * _STAGES * wide, 2 * square)

  @property
  def warps(self) -> int:
    """Of a program."""
    return 8 if self.block > _TILE else 4

  @property
  def width(self) -> int:
    """Of a tile of queries or keys."""
    return _power_of_two(self.channels[0])

  @property
  def blocks(self) -> int:
    """Tiles of a line."""
    return pl.cdiv(self.length, self.block)

  @property
  def slabs(self) -> int:
    """Tiles of the value channels."""
    return pl.cdiv(self.channels[1], self.slab)

  @property
  def shared_bytes(self) -> int:
    """Of a program: tiles that stay, and those of the loop once per stage of its pipeline."""
    narrow = self.block * self.width * self.dtype.itemsize
    wide = self.block * self.slab * self.dtype.itemsize
    weights = self.block * self.block * self.dtype.itemsize
    return narrow + wide + weights + _STAGES * (narrow + wide)

  def spec(self, shape: Sequence[int]) -> pl.BlockSpec:
    """One line of a map, or of its statistics, of which programs load tiles."""
    index = lambda line, *_: (line // self.after, 0, line % self.after)
    length = self.blocks * self.block
    if len(shape) == 3:
      return pl.BlockSpec((None, length, None), index)
    width = self.width if shape[-1] == self.channels[0] else 0
    width = max(width, self.slabs * self.slab if shape[-1] == self.channels[1] else 0)
    return pl.BlockSpec((None, length, None, width), lambda *ids: (*index(*ids), 0))

  def view(self, x: jax.Array, is_map: bool) -> jax.Array:
    """`[before, length, after]`, and channels."""
    return x.reshape(self.before, self.length, self.after, *x.shape[-1:] * is_map)


def _shared_bytes_here() -> int:
  """What this process's GPU lends to one program; without one, what every GPU does."""
  if jax.default_backend() != 'gpu':
    return SHARED_BYTES
  capability = jax.local_devices()[0].compute_capability
  return _MORE_SHARED_BYTES.get(capability, SHARED_BYTES)


def _power_of_two(size: int) -> int:
  # Tensor cores take no less than 16.
  return max(16, pl.next_power_of_2(size))


def _positions(start, tiling):
  return start + jnp.arange(tiling.block)


def _load(ref, start, channel, width, channels, tiling):
  """A tile of a map, zero beyond its edges."""
  inside = (_positions(start, tiling) < tiling.length)[:, None]
  inside &= (channel + jnp.arange(width) < channels)[None]
  tile = ref.at[pl.ds(start, tiling.block), pl.ds(channel, width)]
  return plgpu.load(tile, mask=inside, other=0.0)


def _store(ref, start, channel, channels, tiling, tile):
  inside = (_positions(start, tiling) < tiling.length)[:, None]
  inside &= (channel + jnp.arange(tile.shape[1]) < channels)[None]
  at = ref.at[pl.ds(start, tiling.block), pl.ds(channel, tile.shape[1])]
  plgpu.store(at, tile.astype(ref.dtype), mask=inside)


def _load_narrow(ref, start, tiling):
  return _load(ref, start, 0, tiling.width, tiling.channels[0], tiling)


def _load_slab(ref, start, slab, tiling):
  return _load(ref, start, slab * tiling.slab, tiling.slab, tiling.channels[1], tiling)


def _load_statistic(ref, start, tiling):
  inside = _positions(start, tiling) < tiling.length
  return plgpu.load(ref.at[pl.ds(start, tiling.block)], mask=inside, other=0.0)


def _dot(a, b):
  return jax.lax.dot(a, b, preferred_element_type=jnp.float32)


def _scores(query, key, query_start, key_start, tiling):
  """`[queries, keys]`, masked where there is no key."""
  queries = _positions(query_start, tiling)[:, None]
  keys = _positions(key_start, tiling)[None]
  visible = jnp.broadcast_to(keys < tiling.length, (tiling.block, tiling.block))
  if not tiling.itself:
    visible &= queries != keys
  return jnp.where(visible, _dot(query, key.T), _MASKED)


def _attend_kernel(query, key, value, *refs, tiling):
  *before, out, lse = refs
  start = pl.program_id(1) * tiling.block
  slab = pl.program_id(2)
  queries = _load_narrow(query, start, tiling)

  def add_keys(i, carry):
    total, highest, weighted = carry
    key_start = i * tiling.block
    keys = _load_narrow(key, key_start, tiling)
    scores = _scores(queries, keys, start, key_start, tiling)
    higher = jnp.maximum(highest, scores.max(axis=1))
    weights = jnp.exp(scores - higher[:, None])
    shrink = jnp.exp(highest - higher)
    values = _load_slab(value, key_start, slab, tiling)
    weighted = shrink[:, None] * weighted + _dot(weights.astype(values.dtype), values)
    return shrink * total + weights.sum(axis=1), higher, weighted

  if before:
    out_before, lse_before = before
    initial = (
      jnp.ones(tiling.block, jnp.float32),
      _load_statistic(lse_before, start, tiling),
      _load_slab(out_before, start, slab, tiling).astype(jnp.float32),
    )
  else:
    initial = (
      jnp.zeros(tiling.block, jnp.float32),
      jnp.full(tiling.block, _MASKED, jnp.float32),
      jnp.zeros((tiling.block, tiling.slab), jnp.float32),
    )
  total, highest, weighted = jax.lax.fori_loop(0, tiling.blocks, add_keys, initial)
  _store(out, start, slab * tiling.slab, tiling.channels[1], tiling, weighted / total[:, None])
  # Every slab finds the same statistics.
  inside = _positions(start, tiling) < tiling.length
  plgpu.store(lse.at[pl.ds(start, tiling.block)], highest + jnp.log(total), mask=inside)


def _weights(query, key, lse, query_start, key_start, tiling):
  """`[queries, keys]`; queries beyond the end have none."""
  scores = _scores(query, key, query_start, key_start, tiling)
  inside = (_positions(query_start, tiling) < tiling.length)[:, None]
  return jnp.where(inside, jnp.exp(scores - _load_statistic(lse, query_start, tiling)[:, None]), 0)


def _score_gradient(refs, queries, keys, query_start, key_start, tiling):
  """Weights and gradients of the scores, `[queries, keys]`."""
  _, _, value, lse, cotangent, delta = refs

  def add_channels(slab, total):
    cotangents = _load_slab(cotangent, query_start, slab, tiling)
    return total + _dot(cotangents, _load_slab(value, key_start, slab, tiling).T)

  zeros = jnp.zeros((tiling.block, tiling.block), jnp.float32)
  gradient = jax.lax.fori_loop(0, tiling.slabs, add_channels, zeros)
  weights = _weights(queries, keys, lse, query_start, key_start, tiling)
  gradient -= _load_statistic(delta, query_start, tiling)[:, None]
  return weights.astype(tiling.dtype), (weights * gradient).astype(tiling.dtype)


def _gradients_kernel(*refs, tiling):
  """All gradients of a line that is one tile."""
  *refs, of_query, of_key, of_value = refs
  refs, before = refs[:6], refs[6:]
  query, key, _, _, cotangent, _ = refs
  queries, keys = _load_narrow(query, 0, tiling), _load_narrow(key, 0, tiling)
  weights, scores = _score_gradient(refs, queries, keys, 0, 0, tiling)
  narrow = tiling.width, tiling.channels[0], tiling
  _accumulate(lambda _, total: total + _dot(scores, keys), of_query, before[:1], 0, 0, *narrow)
  _accumulate(lambda _, total: total + _dot(scores.T, queries), of_key, before[1:2], 0, 0, *narrow)
  weights = weights.T

  def slab_of_values(slab, carry):
    add = lambda _, total: total + _dot(weights, _load_slab(cotangent, 0, slab, tiling))
    at = slab * tiling.slab, tiling.slab, tiling.channels[1]
    _accumulate(add, of_value, before[2:], 0, *at, tiling)
    return carry

  jax.lax.fori_loop(0, tiling.slabs, slab_of_values, 0)


def _query_gradient_kernel(*refs, tiling):
  *refs, gradient = refs
  refs, before = refs[:6], refs[6:]
  start = pl.program_id(1) * tiling.block
  queries = _load_narrow(refs[0], start, tiling)

  def add_keys(i, total):
    keys = _load_narrow(refs[1], i * tiling.block, tiling)
    _, scores = _score_gradient(refs, queries, keys, start, i * tiling.block, tiling)
    return total + _dot(scores, keys)

  _accumulate(add_keys, gradient, before, start, 0, tiling.width, tiling.channels[0], tiling)


def _key_gradient_kernel(*refs, tiling):
  *refs, gradient = refs
  refs, before = refs[:6], refs[6:]
  start = pl.program_id(1) * tiling.block
  keys = _load_narrow(refs[1], start, tiling)

  def add_queries(i, total):
    queries = _load_narrow(refs[0], i * tiling.block, tiling)
    _, scores = _score_gradient(refs, queries, keys, i * tiling.block, start, tiling)
    return total + _dot(scores.T, queries)

  _accumulate(add_queries, gradient, before, start, 0, tiling.width, tiling.channels[0], tiling)


def _value_gradient_kernel(query, key, value, lse, cotangent, delta, *refs, tiling):
  del value, delta
  *before, gradient = refs
  start = pl.program_id(1) * tiling.block
  slab = pl.program_id(2)
  keys = _load_narrow(key, start, tiling)

  def add_queries(i, total):
    query_start = i * tiling.block
    queries = _load_narrow(query, query_start, tiling)
    weights = _weights(queries, keys, lse, query_start, start, tiling)
    cotangents = _load_slab(cotangent, query_start, slab, tiling)
    return total + _dot(weights.astype(tiling.dtype).T, cotangents)

  at = slab * tiling.slab, tiling.slab, tiling.channels[1]
  _accumulate(add_queries, gradient, before, start, *at, tiling)


def _accumulate(add, gradient, before, start, channel, width, channels, tiling):
  """Stores the sum over the tiles of a line, and the gradients of the axes before."""
  total = jnp.zeros((tiling.block, width), jnp.float32)
  total = jax.lax.fori_loop(0, tiling.blocks, add, total)
  if before:
    total += _load(before[0], start, channel, width, channels, tiling).astype(jnp.float32)
  _store(gradient, start, channel, channels, tiling, total)


def _call(
  kernel: Callable[..., None],
  tiling: Tiling,
  arrays: Sequence[jax.Array],
  shapes: Sequence[tuple[int, ...]],
  *,
  slabs: int,
  products: tuple[int, int],
  name: str,
  interpret: bool,
) -> list[jax.Array]:
  """Runs a kernel over all blocks of all lines.

  Args:
    kernel: on references to lines.
    tiling: of the maps.
    arrays: maps `[batch, *positions, channels]` and statistics `[batch, *positions]`.
    shapes: of the results.
    slabs: into which the results' channels are split.
    products: over query channels and over value channels, for the cost estimate.
    name: of the kernel.
    interpret: whether to run in the interpreter.

  Returns:
    The results.
  """
  rank = arrays[0].ndim
  views = [tiling.view(x, x.ndim == rank) for x in arrays]
  # Inside shard_map, results vary over the mesh axes that any argument varies over.
  axes = [jax.typeof(x).manual_axis_type.varying for x in arrays]
  varying = jax.sharding.ManualAxisType(varying=frozenset().union(*axes))
  structs = [
    jax.ShapeDtypeStruct(
      (tiling.before, tiling.length, tiling.after, *shape[rank - 1 :]),
      tiling.dtype if len(shape) == rank else jnp.float32,
      manual_axis_type=varying,
    )
    for shape in shapes
  ]
  lines = tiling.before * tiling.after
  scores = lines * tiling.length**2
  channels = sum(n * c for n, c in zip(products, tiling.channels, strict=True))
  moved = sum(x.size * x.dtype.itemsize for x in (*views, *structs))
  results = pl.pallas_call(
    kernel,
    grid=(lines, tiling.blocks, slabs),
    in_specs=[tiling.spec(x.shape) for x in views],
    out_specs=[tiling.spec(x.shape) for x in structs],
    out_shape=structs,
    compiler_params=plgpu.CompilerParams(num_warps=tiling.warps, num_stages=_STAGES),
    cost_estimate=pl.CostEstimate(
      flops=2 * scores * channels, transcendentals=scores, bytes_accessed=moved
    ),
    interpret=interpret,
    name=name,
  )(*views)
  return [x.reshape(shape) for x, shape in zip(results, shapes, strict=True)]
