"""Sparse convolutions for TPUs: Mosaic kernels that keep the cells of a scene in VMEM.

A TPU reads rows of VMEM wherever they are, but its scalar unit takes one or two cycles for each
place, and a window has 27. Cells are sorted by x, y and z, so the three of a column of z lie next
to each other, as far as they are there. So a window is nine reads of a few rows, from the first
cell of each column on. Which of the rows is at which place of the column, the vector unit says from
what is there, while the scalar unit reads the next column; and the matrix unit multiplies what 128
cells have at a place by the place's matrix.

The gradients of features and of the kernel are made of the same windows, those of the cotangent:
what a cell gives to its neighbour, it gets from it seen from the other side.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

_LANES = 128
# Cells that are computed in a step, and that are copied to VMEM in one.
_TILE, _COPIED = 128, 1024
# Columns of a window, places in a column, and rows that are read of it.
_COLUMNS, _PLACES, _READ = 9, 3, 4
_WINDOW = _COLUMNS * _PLACES
# The bit that says that a cell's columns are not sorted. Those before are its places, by column.
_UNSORTED = _WINDOW
# The bit of the cell's own place.
_ITSELF = _WINDOW // 2
_LIMIT_BYTES = 120 * 2**20
# Of it, for the cells of a step and what the compiler needs.
_WORK_BYTES = 16 * 2**20


def fits(cells: int, kernel_shape: Sequence[int]) -> bool:
  """Whether the kernels take a convolution: 3 x 3 x 3 places, and a scene's cells in VMEM."""
  available = _LIMIT_BYTES
  if pltpu.is_tpu_device():
    available = min(available, pltpu.get_tpu_info().vmem_capacity_bytes * 7 // 8)
  window, channels, features = kernel_shape
  wide = [pl.cdiv(width, _LANES) * _LANES for width in (channels, features)]
  # Features are there in the forward pass; in the other, cotangents and the kernel's gradient.
  needed = 4 * (cells + 2 * _COPIED) * max(wide) + 2 * (4 + 2) * window * wide[0] * wide[1]
  return window == _WINDOW and needed <= available - _WORK_BYTES


def is_sorted(table: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
  """Whether cells are in an order in which the kernels find them, of `[batch, 27, cells]`."""
  return (_columns(table)[1] >> _PLACES == 0).all()


def convolution(
  x: jax.Array, kernel: jax.Array, table: jax.Array, *, tile: int = _TILE, interpret: bool = False
) -> jax.Array:
  """See `reference.convolution`; cells that are not sorted by x, y and z become NaN."""
  (result,) = _run(
    _forward,
    x,
    table,
    whole=_whole_planes(kernel, 1),
    features=kernel.shape[2],
    tile=tile,
    interpret=interpret,
    name='sparse_convolution',
  )
  return result


def gradients(
  x: jax.Array,
  kernel: jax.Array,
  table: jax.Array,
  cotangent: jax.Array,
  *,
  tile: int = _TILE,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """The gradients of `x`, in its dtype, and of `kernel`, in float32."""
  backwards = _whole_planes(kernel[::-1].swapaxes(1, 2), 1)
  wide_x = _whole_planes(x, 2)
  of_x, of_kernel = _run(
    _backward,
    cotangent,
    table,
    whole=backwards,
    of_cells=[wide_x],
    features=x.shape[2],
    of_scene=[(_WINDOW, wide_x.shape[2], backwards.shape[1])],
    tile=tile,
    interpret=interpret,
    name='sparse_convolution_vjp',
  )
  return of_x, of_kernel.sum(axis=0)[:, : x.shape[2], : kernel.shape[2]]


def _forward(window, is_first, kernel, result, total):
  del is_first
  total[...] = jnp.zeros(total.shape, total.dtype)
  for column in window.columns():
    total[...] += _sum_of_products(column, kernel)
  result[0] = window.or_nan(total[...]).astype(result.dtype)


def _backward(window, is_first, backwards, x, of_x, of_kernel, total):
  @pl.when(is_first)
  def _():
    for place in range(_WINDOW):
      of_kernel[0, place] = jnp.zeros(of_kernel.shape[2:], of_kernel.dtype)

  total[...] = jnp.zeros(total.shape, total.dtype)
  transposed = []
  for plane in _planes(x.shape[2]):
    # Padding may hold anything.
    cells = jnp.where(
      window.has(_ITSELF, plane.stop - plane.start), x[0, :, plane].astype(jnp.float32), 0
    )
    transposed.append((plane, cells.T.astype(x.dtype)))
  for column in window.columns():
    total[...] += _sum_of_products(column, backwards)
    for place, parts in column:
      for features, part in parts:
        for channels, cells in transposed:
          of_kernel[0, _WINDOW - 1 - place, channels, features] += _product(cells, part)
  of_x[0] = window.or_nan(total[...]).astype(of_x.dtype)


def _sum_of_products(column, matrices):
  return sum(
    _product(part, matrices[place, plane]) for place, parts in column for plane, part in parts
  )


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.dot(a, b, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Windows:
  """What is around the cells of a step.

  Attributes:
    first: `[1, columns, tile]` in SMEM, the row of the first cell of each column.
    marks: `[tile, tile]`, for each cell, in all lanes, the bits of places at which a cell is.
    rows: `[planes, cells, lanes]`, the scene.
    read: `[2 * planes * tile * 4, lanes]`, rows of a column for each cell; two columns by turns.
    dtype: of the products.
    unroll: whether the program has the reads of all cells one after another.
  """

  first: Any
  marks: Any
  rows: Any
  read: Any
  dtype: jnp.dtype
  unroll: bool = True

  def columns(self) -> Iterator[list[tuple[int, list[tuple[slice, jax.Array]]]]]:
    """Yields, of each column, its places and what cells have there: `[tile, lanes]` by plane."""
    self._read(0)
    for column in range(_COLUMNS):
      if column + 1 < _COLUMNS:
        self._read(column + 1)  # Before the products: the scalar unit is what takes longest.
      yield self._at_places(column)

  def has(self, bit: int, lanes: int) -> jax.Array:
    """`[tile, lanes]`, whether each cell has a mark."""
    return (self.marks[:, :lanes] & (1 << bit)) != 0

  def or_nan(self, x: jax.Array) -> jax.Array:
    """`[tile, features]`, NaN for cells whose neighbours are not where they are looked for."""
    return jnp.where(self.has(_UNSORTED, 1), jnp.nan, x)

  def _read(self, column):
    tile = self.first.shape[2]

    def read(cell, carry):
      rows = pl.ds(self.first[0, column, cell], _READ)
      for plane in range(len(self.rows)):
        place = self._start(column, plane) + cell * _READ
        self.read[pl.ds(place, _READ)] = self.rows[plane, rows]
      return carry

    jax.lax.fori_loop(0, tile, read, None, unroll=self.unroll)

  def _start(self, column, plane):
    """Where in `read` a plane of a column is."""
    planes, tile = len(self.rows), self.first.shape[2]
    return (column % 2 * planes + plane) * tile * _READ

  def _at_places(self, column):
    places = [column + _COLUMNS * place for place in range(_PLACES)]
    planes, _, lanes = self.rows.shape
    lower, middle, upper = (self.has(_PLACES * column + i, lanes) for i in range(_PLACES))
    parts, tile = [[] for _ in places], self.first.shape[2]
    for plane, channels in enumerate(_planes(planes * lanes)):
      first, second, third = (
        self.read[pl.ds(self._start(column, plane) + row, tile, stride=_READ)]
        for row in range(_PLACES)
      )
      after_lower, next_to_it = jnp.where(lower, second, first), jnp.where(lower, third, second)
      for part, is_there, rows in (
        (parts[0], lower, first),
        (parts[1], middle, after_lower),
        (parts[2], upper, jnp.where(middle, next_to_it, after_lower)),
      ):
        part.append((channels, jnp.where(is_there, rows, 0).astype(self.dtype)))
    return list(zip(places, parts, strict=True))


# --- The call of a kernel --------------------------------------------------------------------


def _run(
  compute: Callable[..., None],
  rows: jax.Array,
  table: jax.Array,
  *,
  whole: jax.Array,
  of_cells: Sequence[jax.Array] = (),
  features: int,
  of_scene: Sequence[tuple[int, ...]] = (),
  tile: int,
  interpret: bool,
  name: str,
) -> Sequence[jax.Array]:
  """Calls a kernel that copies the rows of a scene to VMEM, and then computes its cells.

  Args:
    compute: what a step does with the windows of its cells.
    rows: `[batch, cells, channels]`, what is in windows.
    table: `[batch, 27, cells]`.
    whole: an array that every step sees.
    of_cells: `[batch, cells, ...]` arrays of which a step sees its cells.
    features: of the result.
    of_scene: shapes of float32 results for each scene.
    tile: cells of a step.
    interpret: runs the kernel's code as jnp, for tests.
    name: of the kernel.

  Returns:
    `[batch, cells, features]`, in the dtype of `rows`, and `[batch, *shape]` of each scene.
  """
  batch, cells, _ = rows.shape
  padding = (0, -cells % tile)
  table = jnp.pad(table, ((0, 0), (0, 0), padding), constant_values=-1)
  pad_cells = lambda x: jnp.pad(x, ((0, 0), padding, (0, 0)))
  rows, of_cells = _whole_planes(pad_cells(rows), 2), [pad_cells(x) for x in of_cells]
  count, channels = rows.shape[1:]
  copied, lanes = min(count, _COPIED), min(channels, _LANES)
  copies, planes = pl.cdiv(count, copied), pl.cdiv(channels, _LANES)
  scratch = functools.partial(pltpu.VMEM, dtype=jnp.float32)

  def cells_block(width: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, tile, width), lambda b, step: (b, jnp.maximum(step - copies, 0), 0))

  def table_block(rows: int, memory_space=None) -> pl.BlockSpec:
    index = lambda b, step: (b, 0, jnp.maximum(step - copies, 0))
    return pl.BlockSpec((1, rows, tile), index, memory_space=memory_space)

  def scene_block(shape: tuple[int, ...]) -> pl.BlockSpec:
    return pl.BlockSpec((1, *shape), lambda b, step: (b, *(0 for _ in shape)))

  def kernel(first, there, block, *refs):
    *refs, rows, read, marks, total = refs
    step = pl.program_id(1)

    @pl.when(step < copies)
    def _():
      place = pl.ds(pl.multiple_of(step * copied, copied), copied)
      for plane, lanes in enumerate(_planes(channels)):
        rows[plane, place] = block[0, :, lanes].astype(rows.dtype)

    @pl.when(step >= copies)
    def _():
      marks[...] = jnp.broadcast_to(_marks(there[0]), marks.shape).T
      window = _Windows(first, marks, rows, read, block.dtype, unroll=not interpret)
      compute(window, step == copies, *refs, total)

  results = [(batch, count, features), *((batch, *shape) for shape in of_scene)]
  dtypes = [rows.dtype, *(jnp.float32 for _ in of_scene)]
  arrays = *_columns(table), rows, whole, *of_cells
  moved = sum(x.size * x.dtype.itemsize for x in arrays) + sum(map(math.prod, results)) * 4
  result, *of_scene_results = pl.pallas_call(
    kernel,
    grid=(batch, copies + count // tile),
    in_specs=[
      table_block(_COLUMNS, pltpu.SMEM),
      table_block(_COLUMNS),
      pl.BlockSpec((1, copied, channels), lambda b, step: (b, jnp.minimum(step, copies - 1), 0)),
      pl.BlockSpec(whole.shape, lambda b, step: tuple(0 for _ in whole.shape)),
      *(cells_block(x.shape[2]) for x in of_cells),
    ],
    out_specs=[cells_block(features), *(scene_block(shape) for shape in of_scene)],
    out_shape=[jax.ShapeDtypeStruct(*x) for x in zip(results, dtypes, strict=True)],
    scratch_shapes=[
      # A read of the last row goes beyond it.
      scratch((planes, copies * copied + 2 * _READ, lanes)),
      scratch((2 * planes * tile * _READ, lanes)),
      pltpu.VMEM((tile, tile), jnp.int32),
      scratch((tile, features)),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=_LIMIT_BYTES
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * (1 + len(of_scene)) * batch * count * whole.size,
      bytes_accessed=moved,
      transcendentals=0,
    ),
    name=name,
    interpret=interpret,
  )(*arrays)
  return result[:, :cells], *of_scene_results


def _columns(table: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
  """What a step wants to know of a table.

  Args:
    table: `[batch, 27, cells]`.

  Returns:
    `[batch, 9, cells]`, the row of the first cell of each column, 0 if there is none; and the bits
    of places at which there is one, and of `_UNSORTED`, likewise.
  """
  lower, middle, upper = (table[:, i * _COLUMNS : (i + 1) * _COLUMNS] for i in range(_PLACES))
  one, two, three = (place >= 0 for place in (lower, middle, upper))
  where = np.where if isinstance(table, np.ndarray) else jnp.where
  first = where(one, lower, where(two, middle, where(three, upper, 0)))
  in_order = ~(one & two) | (middle == lower + 1)
  in_order &= ~three | (upper == first + one + two)
  return first, one | two << 1 | three << 2 | ~in_order << _PLACES


def _marks(columns: jax.Array) -> jax.Array:
  """`[1, tile]`, all bits of each cell, out of `[9, tile]`, those of each column."""
  place = _PLACES * jax.lax.broadcasted_iota(jnp.int32, columns.shape, 0)
  unsorted = (columns >> _PLACES).max(axis=0, keepdims=True) << _UNSORTED
  return ((columns & (1 << _PLACES) - 1) << place).sum(axis=0, keepdims=True) | unsorted


def _planes(channels: int) -> list[slice]:
  """Channels that lie next to each other in VMEM, whole lanes of them if there are several."""
  return [slice(start, min(start + _LANES, channels)) for start in range(0, channels, _LANES)]


def _whole_planes(x: jax.Array, axis: int) -> jax.Array:
  """Adds channels of zeros, so that each of several planes is whole."""
  padding = -x.shape[axis] % _LANES if x.shape[axis] > _LANES else 0
  return jnp.pad(x, [(0, padding if i == axis else 0) for i in range(x.ndim)])
