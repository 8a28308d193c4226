"""RoIAlign for TPUs: a Mosaic kernel that keeps the maps of an image in VMEM.

A bin is a weighted sum of cells, and the weight of a cell is the product of one of its row and one
of its column (`geometry.roi_sampling`). A box loops over the tiles of its map that it touches: 16
rows by 16 columns. Two vectors of weights are computed from where the box is, and multiplied to a
matrix `[bins, 256]`, and the matrix unit multiplies it with the tile `[256, channels]`. No cell is
gathered, boxes of any size are exact, and cost what their tiles cost. The gradient adds transposed
products to maps of sums in VMEM.
"""

from collections.abc import Sequence
import dataclasses
import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from crossattn_jax.geometry import roi_sampling

_LANES = 128
_SUBLANES = 8
# Rows and columns of a tile; columns are those of a tile of bfloat16 in memory.
_TILE = 16
# Boxes of a grid step.
_BOXES = 8
_LIMIT_BYTES = 120 * 2**20
# Of it, for the blocks of boxes and what the compiler needs.
_WORK_BYTES = 8 * 2**20
# Numbers that say where a box lies: see `_places`.
_WHOLE, _REAL = 5, 7


def _padded(x: jax.Array) -> jax.Array:
  """A map with whole tiles of columns, and enough rows for one."""
  height, width = x.shape[1:3]
  rows, columns = max(_TILE - height, 0), -width % _TILE
  return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0))) if rows or columns else x


def _places(boxes, levels, map_sizes, *, size, strides, sampling_ratio, aligned):
  """What the kernel is told of every box.

  Returns:
    int32 `[batch, count, 5]`: the level, the first row and the number of row tiles, the first
    column tile and the number of those; float32 `[batch, count, 7]`: start, size and samples of
    bins along rows and along columns, and the number of samples.
  """
  strides, lengths = jnp.asarray(strides, boxes.dtype), jnp.asarray(map_sizes)
  axes = roi_sampling.axes(boxes, size, strides[levels], sampling_ratio, aligned)
  whole, real = [levels], []
  for i, (axis, bins) in enumerate(zip(axes, size, strict=True)):
    first, count = roi_sampling.reach(axis, bins, lengths[levels, i])
    before = first % _TILE if i else 0  # Tiles begin at any row, and at every 16th column.
    tiles = jnp.where(count > 0, (before + count + _TILE - 1) // _TILE, 0)
    whole += [first // _TILE if i else first, tiles]
    real += axis
  real.append(jnp.maximum(axes[0].samples * axes[1].samples, 1))
  return jnp.stack(whole, axis=-1), jnp.stack(real, axis=-1)


@dataclasses.dataclass(frozen=True)
class _Call:
  """What the kernels of one call need to know beside the arrays.

  Attributes:
    lengths: height and width of every map, without padding.
    size: bins of a box.
    ratio: see `api.roi_align`.
    dtype: of the maps.
  """

  lengths: tuple[tuple[int, int], ...]
  size: tuple[int, int]
  ratio: int
  dtype: jnp.dtype

  @property
  def wide(self) -> int:
    """Rows of a matrix for the bins of a row."""
    return pl.cdiv(self.size[1], _SUBLANES) * _SUBLANES

  def bins(self, i: int) -> slice:
    """The rows of a matrix that are the i-th row of bins."""
    return slice(i * self.wide, i * self.wide + self.size[1])

  def for_boxes(self, whole, real, function) -> None:
    """Calls a function with every box of a grid step, its level and its place."""

    def box(i, carry):
      place = [whole[0, 0, i * _WHOLE + k] for k in range(_WHOLE)]
      place += [real[0, 0, i * _REAL + k] for k in range(_REAL)]
      for level in range(len(self.lengths)):
        at_level = functools.partial(function, i, level, place[1:])
        at_level() if len(self.lengths) == 1 else pl.when(place[0] == level)(at_level)
      return carry

    jax.lax.fori_loop(0, _BOXES, box, None)

  def for_tiles(self, level: int, rows_of_map: int, place, function, carry):
    """Calls a function for every tile that a box touches, one after the other.

    Args:
      level: of the box.
      rows_of_map: with padding.
      place: of the box.
      function: of the weights `[bins, cells]`, the tile's slices of the map, and what it returned
        for the tile before.
      carry: the first one's.

    Returns:
      What it returned last.
    """
    first_row, row_tiles, first_column, column_tiles, *real = place
    rows, columns = roi_sampling.Axis(*real[:3]), roi_sampling.Axis(*real[3:6])
    height, width = self.lengths[level]
    cell = jax.lax.broadcasted_iota(jnp.int32, (1, _TILE * _TILE), 1)
    number = lambda count: jax.lax.broadcasted_iota(jnp.int32, (count, 1), 0).astype(jnp.float32)
    tall = pl.cdiv(self.size[0], _SUBLANES) * _SUBLANES

    def column_tile(j, carry):
      column = pl.multiple_of((first_column + j) * _TILE, _TILE)
      cells = (column + (cell & (_TILE - 1))).astype(jnp.float32)
      column_weights = roi_sampling.weights(columns, number(self.wide), cells, width, self.ratio)

      def row_tile(k, carry):
        row = first_row + k * _TILE
        start = jnp.minimum(row, rows_of_map - _TILE)
        cells = start + (cell >> _TILE.bit_length() - 1)
        row_weights = roi_sampling.weights(
          rows, number(tall), cells.astype(jnp.float32), height, self.ratio
        )
        row_weights = jnp.where(cells >= row, row_weights, 0)  # Else they had their turn before.
        weights = jnp.concatenate(
          [row_weights[i : i + 1] * column_weights for i in range(self.size[0])]
        )
        return function(weights, (pl.ds(start, _TILE), pl.ds(column, _TILE)), carry)

      return jax.lax.fori_loop(0, row_tiles, row_tile, carry)

    return jax.lax.fori_loop(0, column_tiles, column_tile, carry)


def _kernel(whole, real, *refs, call: _Call):
  *maps, out = refs
  channels = out.shape[-1]

  def align(i, level, place):
    x = maps[level]

    def add(weights, tile, total):
      cells = x[0, *tile].reshape(_TILE * _TILE, channels)
      return total + _product(weights.astype(call.dtype), cells)

    total = jnp.zeros((call.size[0] * call.wide, channels), jnp.float32)
    total = call.for_tiles(level, x.shape[1], place, add, total) / place[-1]
    for k in range(call.size[0]):
      out[0, i, k] = total[call.bins(k)].astype(out.dtype)

  call.for_boxes(whole, real, align)


def _kernel_vjp(whole, real, cotangent, *gradients, call: _Call):
  channels = cotangent.shape[-1]

  @pl.when(pl.program_id(2) == 0)
  def _():
    for gradient in gradients:
      none = jnp.zeros(gradient.shape[2:], gradient.dtype)

      def clear(row, carry, gradient=gradient, none=none):
        gradient[0, row] = none
        return carry

      jax.lax.fori_loop(0, gradient.shape[1], clear, None)

  def align(i, level, place):
    gradient = gradients[level]
    missing = jnp.zeros((call.wide - call.size[1], channels), jnp.float32)
    parts = []
    for k in range(call.size[0]):
      parts += [cotangent[0, i, k].astype(jnp.float32) / place[-1], missing]
    of_bins = jnp.concatenate([part for part in parts if len(part)]).astype(call.dtype)

    def add(weights, tile, carry):
      cells = _product(weights.T.astype(call.dtype), of_bins)
      gradient[0, *tile] += cells.reshape(_TILE, _TILE, channels)
      return carry

    call.for_tiles(level, gradient.shape[1], place, add, None)

  call.for_boxes(whole, real, align)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.dot(a, b, preferred_element_type=jnp.float32)


def slab(maps: Sequence[jax.Array], gradient: bool) -> int | None:
  """Channels of which all maps fit in VMEM, or their gradients; None where none do."""
  available = _LIMIT_BYTES
  if pltpu.is_tpu_device():
    available = min(available, pltpu.get_tpu_info().vmem_capacity_bytes * 7 // 8)
  channels, dtype = maps[0].shape[-1], maps[0].dtype
  padded = [jax.eval_shape(_padded, x).shape for x in maps]
  cells = sum(height * width for _, height, width, _ in padded)
  for width in (channels, _LANES):
    # Sums of gradients are float32; those of the slab before are still on their way to HBM.
    depth = pl.cdiv(width, _LANES) * _LANES * (2 * 4 if gradient else dtype.itemsize)
    if channels % width == 0 and cells * depth <= available - _WORK_BYTES:
      return width
  return None


def roi_align(maps, boxes, levels, *, interpret=False, **options):
  """See `api.roi_align_pyramid`; `levels` `[batch, count]` says from which map a box is cut."""
  channels = slab(maps, gradient=False)
  padded = [_padded(x) for x in maps]
  in_vmem = [
    pl.BlockSpec((1, *x.shape[1:3], channels), _whole_map, pipeline_mode=pl.Buffered(1))
    for x in padded
  ]
  run, of_boxes, shape = _call(_kernel, maps, boxes, levels, channels, interpret, **options)
  out = run(padded, in_vmem, of_boxes, jax.ShapeDtypeStruct(shape, maps[0].dtype), name='roi_align')
  return out[:, : boxes.shape[1]]


def roi_align_vjp(cotangent, maps, boxes, levels, *, interpret=False, **options):
  """The gradients of the maps."""
  channels = slab(maps, gradient=True)
  padded = [jax.eval_shape(_padded, x) for x in maps]
  in_vmem = [pl.BlockSpec((1, *x.shape[1:3], channels), _whole_map) for x in padded]
  run, of_boxes, shape = _call(_kernel_vjp, maps, boxes, levels, channels, interpret, **options)
  cotangent = jnp.pad(cotangent, ((0, 0), (0, shape[1] - boxes.shape[1]), *[(0, 0)] * 3))
  sums = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in padded]
  gradients = run([cotangent], [of_boxes], in_vmem, sums, name='roi_align_vjp')
  return [
    gradient[:, : x.shape[1], : x.shape[2]].astype(x.dtype)
    for gradient, x in zip(gradients, maps, strict=True)
  ]


def _whole_map(image, slab_of_channels, step):
  del step
  return image, 0, 0, slab_of_channels


def _call(kernel, maps, boxes, levels, channels, interpret, **options):
  """What the calls of both kernels have in common.

  Returns:
    A function that runs the kernel: of arrays and their blocks, blocks and shapes of the results
    and the name; the block of values of boxes, and their shape with whole steps.
  """
  lengths = tuple(x.shape[1:3] for x in maps)
  call = _Call(lengths, options['size'], options['sampling_ratio'], maps[0].dtype)
  batch, count = boxes.shape[:2]
  steps = pl.cdiv(count, _BOXES)

  def in_steps(numbers):
    numbers = jnp.pad(numbers, ((0, 0), (0, steps * _BOXES - count), (0, 0)))
    return numbers.reshape(batch * steps, 1, _BOXES * numbers.shape[-1])

  places = [in_steps(numbers) for numbers in _places(boxes, levels, lengths, **options)]
  scalars = [
    pl.BlockSpec((1, *x.shape[1:]), lambda b, c, s: (b * steps + s, 0, 0), memory_space=pltpu.SMEM)
    for x in places
  ]
  all_channels = maps[0].shape[-1]

  def run(arrays, blocks, out_blocks, out_shape, name):
    return pl.pallas_call(
      functools.partial(kernel, call=call),
      grid=(batch, all_channels // channels, steps),
      in_specs=[*scalars, *blocks],
      out_specs=out_blocks,
      out_shape=out_shape,
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel', 'parallel', 'arbitrary'), vmem_limit_bytes=_LIMIT_BYTES
      ),
      name=name,
      interpret=interpret,
    )(*places, *arrays)

  of_boxes = pl.BlockSpec((1, _BOXES, *call.size, channels), lambda b, c, s: (b, s, 0, 0, c))
  return run, of_boxes, (batch, steps * _BOXES, *call.size, all_channels)
