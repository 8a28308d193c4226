"""The public functions of sparse convolutions: checks, gradients that gather and never scatter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import parallel
from crossattn_jax.kernels import dispatch
from crossattn_jax.kernels.neighbours import reference, tpu, tpu_gathers, xla

IMPLEMENTATIONS = ('auto', 'reference', 'xla')
_KERNEL_DTYPES = (jnp.float32, jnp.bfloat16)
_GATHERS = xla, tpu_gathers


def sparse_convolution(
  x: jax.Array, kernel: jax.Array, table: jax.Array, *, implementation: str = 'auto'
) -> jax.Array:
  """A convolution on sparse cells, whose results are at the same cells ("submanifold").

  Source: 4D Spatio-Temporal ConvNets, Choy et al. 2019 (arXiv 1904.08755), equation 3; MIT
  (arXiv 2310.12817).

  Args:
    x: `[batch, n, channels]`.
    kernel: `[window, channels, features]`.
    table: `[batch, window, n]` integers, as `geometry.points.neighbours` makes them, -1 for no
      cell: the rows of cells around each one, in an order in which opposite places are at opposite
      ends. Columns of rows that are padding hold -1 only.
    implementation: 'reference' is the definition, 'xla' gathers in blocks of rows, on TPUs in a
      form of its own, 'tpu' is the Pallas kernel for windows of 3 x 3 x 3 and scenes that fit in
      VMEM, in float32 and bfloat16. It wants cells that are sorted by x, y and z, as
      `geometry.points` sorts them; others become NaN.
      'auto' takes it on TPUs where it can, and else 'xla'; also for cells that are not sorted, if
      `table` is a NumPy array, which tells.

  Returns:
    `[batch, n, features]` in `x`'s dtype, 0 in padding. What is in padded rows of `x` does not
    matter. Products are summed in at least float32. Both arrays have gradients, made of gathers.

  Raises:
    ValueError: shapes or the implementation that do not go together, by name.

  Examples:
    >>> x, kernel = jnp.ones((1, 100, 3)), jnp.ones((27, 3, 16))
    >>> table = jnp.full((1, 27, 100), -1)  # No cell has neighbours.
    >>> jax.eval_shape(sparse_convolution, x, kernel, table).shape
    (1, 100, 16)
  """
  op = 'sparse_convolution'
  dispatch.require(op, kernel.shape[0] % 2 == 1, f'a window is odd, got kernel {kernel.shape}')
  tables = {'table': (table, (*x.shape[:1], kernel.shape[0], *x.shape[1:2]))}
  dispatch.require(
    op,
    implementation != 'tpu' or tpu.fits(x.shape[1], kernel.shape),
    f"implementation 'tpu' keeps a scene's cells in VMEM and has 27 places, not x {x.shape} and "
    f"kernel {kernel.shape}; take 'xla'",
  )
  dispatch.check_kernel_dtype(op, implementation, x.dtype)
  takes_kernel = implementation in ('auto', 'tpu') and tpu.fits(x.shape[1], kernel.shape)
  # Of a traced table nobody can tell, and a check inside would keep programs from being exported.
  if takes_kernel and isinstance(table, np.ndarray) and not tpu.is_sorted(table):
    message = "implementation 'tpu' wants sorted cells; sort them, or take 'xla'"
    dispatch.require(op, implementation != 'tpu', message)
    implementation = 'xla'
  form = functools.partial(_convolution, implementation)
  form = reference.convolution if implementation == 'reference' else form
  return _checked(op, form, x, kernel, tables, implementation, (*IMPLEMENTATIONS, 'tpu'))


def sparse_downsampling(
  x: jax.Array,
  kernel: jax.Array,
  children: jax.Array,
  place: jax.Array,
  *,
  implementation: str = 'auto',
) -> jax.Array:
  """A convolution of 2 x 2 x 2 cells with stride 2, from a level to the next coarser one.

  Source: see `sparse_convolution`.

  Args:
    x: `[batch, n, channels]` of the finer level.
    kernel: `[8, channels, features]`.
    children: `[batch, 8, m]` integers, the rows of the finer cells in each coarser one, -1 for
      none (`geometry.points.coarsen`).
    place: `[batch, n]` integers, where each finer cell is: 8 times its parent's row plus its
      octant, -1 in padding.
    implementation: see `sparse_convolution`; 'tpu' is none.

  Returns:
    `[batch, m, features]` in `x`'s dtype; see `sparse_convolution`.

  Raises:
    ValueError: see `sparse_convolution`.
  """
  tables = {
    'children': (children, (x.shape[0], 8, children.shape[-1])),
    'place': (place, x.shape[:2]),
  }
  form = reference.downsampling if implementation == 'reference' else _downsampling
  return _checked('sparse_downsampling', form, x, kernel, tables, implementation)


def sparse_upsampling(
  x: jax.Array,
  kernel: jax.Array,
  children: jax.Array,
  place: jax.Array,
  *,
  implementation: str = 'auto',
) -> jax.Array:
  """The transposed convolution of 2 x 2 x 2 cells with stride 2, to cells that are there already.

  Source: see `sparse_convolution`.

  Args:
    x: `[batch, m, channels]` of the coarser level.
    kernel: `[8, channels, features]`.
    children: see `sparse_downsampling`.
    place: see `sparse_downsampling`.
    implementation: see `sparse_convolution`; 'tpu' is none.

  Returns:
    `[batch, n, features]` in `x`'s dtype; see `sparse_convolution`.

  Raises:
    ValueError: see `sparse_convolution`.
  """
  tables = {
    'children': (children, (x.shape[0], 8, x.shape[1])),
    'place': (place, (x.shape[0], place.shape[-1])),
  }
  form = reference.upsampling if implementation == 'reference' else _upsampling
  return _checked('sparse_upsampling', form, x, kernel, tables, implementation)


def _checked(op, form, x, kernel, tables, implementation, known=IMPLEMENTATIONS):
  """Checks what a form is given, and lets each device compute its own scenes.

  Args:
    op: the name of the operation.
    form: takes `x`, `kernel` and the tables.
    x: see there.
    kernel: see there.
    tables: by name, and the shape each is to have. None points into another scene.
    implementation: see there.
    known: those that there are.
  """
  dispatch.check_implementation(op, implementation, known)
  _check(op, x, kernel, tables)
  arrays, scenes = [table for table, _ in tables.values()], ('batch', None, None)
  return parallel.map_shards(
    form,
    x,
    kernel,
    *arrays,
    names=(scenes, (None, None, None), *(scenes[: table.ndim] for table in arrays)),
    out_names=scenes,
  )


def _valid(x, is_row):
  """Padding may hold anything, NaN too."""
  return jnp.where(is_row[..., None], x, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolution(implementation, x, kernel, table):
  forms = *(module.convolution for module in _GATHERS), tpu.convolution
  return _by_platform(implementation, *forms, x, kernel, table)


def _convolution_forward(implementation, x, kernel, table):
  return _convolution(implementation, x, kernel, table), (x, kernel, table)


def _convolution_backward(implementation, residuals, cotangent):
  x, kernel, table = residuals
  forms = *(functools.partial(_gradients, module) for module in _GATHERS), tpu.gradients
  of_x, of_kernel = _by_platform(implementation, *forms, x, kernel, table, cotangent)
  return of_x, of_kernel.astype(kernel.dtype), None


def _gradients(module, x, kernel, table, cotangent):
  x = _valid(x, table[:, table.shape[1] // 2] >= 0)
  # A cell gives to its neighbour what that one sees on the other side of its window.
  of_x, of_kernel = module.gradients(x, kernel[::-1], table, cotangent)
  return of_x, of_kernel[::-1]


def _by_platform(implementation, jnp_form, tpu_form, kernel_form, x, kernel, *arrays):
  if implementation == 'tpu':
    return kernel_form(x, kernel, *arrays)
  fits = x.dtype in _KERNEL_DTYPES and tpu.fits(x.shape[1], kernel.shape)
  tpu_form = kernel_form if implementation == 'auto' and fits else tpu_form
  return dispatch.by_platform(x, kernel, *arrays, xla=jnp_form, tpu=tpu_form)


def _gathered(name, *arrays):
  """What a function of `xla` does, in the form of the platform."""
  jnp_form, tpu_form = (getattr(module, name) for module in _GATHERS)
  return dispatch.by_platform(*arrays, xla=jnp_form, tpu=tpu_form)


@jax.custom_vjp
def _downsampling(x, kernel, children, place):
  del place
  return _gathered('convolution', x, kernel, children)


def _downsampling_forward(x, kernel, children, place):
  return _downsampling(x, kernel, children, place), (x, kernel, children, place)


def _downsampling_backward(residuals, cotangent):
  x, kernel, children, place = residuals
  cotangent = _valid(cotangent, (children >= 0).any(axis=1))
  of_x = _gathered('transposed_convolution', cotangent, kernel.swapaxes(1, 2), place)
  of_kernel = _gathered('kernel_gradient', x, children, cotangent)
  return of_x, of_kernel.astype(kernel.dtype), None, None


@jax.custom_vjp
def _upsampling(x, kernel, children, place):
  del children
  return _gathered('transposed_convolution', x, kernel, place)


def _upsampling_forward(x, kernel, children, place):
  return _upsampling(x, kernel, children, place), (x, kernel, children)


def _upsampling_backward(residuals, cotangent):
  x, kernel, children = residuals
  x = _valid(x, (children >= 0).any(axis=1))
  of_x, of_kernel = _gathered('gradients', x, kernel, children, cotangent)
  return of_x, of_kernel.astype(kernel.dtype), None, None


_convolution.defvjp(_convolution_forward, _convolution_backward)
_downsampling.defvjp(_downsampling_forward, _downsampling_backward)
_upsampling.defvjp(_upsampling_forward, _upsampling_backward)


def _check(op, x, kernel, tables):
  require = functools.partial(dispatch.require, op)
  require(x.ndim == 3, f'x must be [batch, cells, channels], got {x.shape}')
  require(
    kernel.ndim == 3 and kernel.shape[1] == x.shape[2],
    f'kernel must be [window, {x.shape[2]}, features] for x {x.shape}, got {kernel.shape}',
  )
  for name, (table, shape) in tables.items():
    require(jnp.issubdtype(table.dtype, jnp.integer), f'{name} must be integers, got {table.dtype}')
    require(
      table.shape == shape,
      f'{name} must be {shape} for x {x.shape} and kernel {kernel.shape}, got {table.shape}',
    )
