"""The public functions of RoIAlign: checks, levels of a pyramid."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp

from crossattn_jax import parallel
from crossattn_jax.kernels import dispatch
from crossattn_jax.kernels.roi_align import reference, tpu, xla

_KERNEL_DTYPES = (jnp.float32, jnp.bfloat16)
IMPLEMENTATIONS = ('auto', 'reference', 'xla', 'tpu')


def roi_align(
  maps: jax.Array,
  boxes: jax.Array,
  *,
  size: int | tuple[int, int],
  stride: float = 1,
  sampling_ratio: int = 0,
  aligned: bool = True,
  implementation: str = 'auto',
) -> jax.Array:
  """Resamples a map within boxes: a box is cut into bins, a bin is a mean of bilinear samples.

  Source: Mask R-CNN, He et al. 2017 (arXiv 1703.06870), section 3. Samples more than a cell outside
  the map count as 0, others outside have the value of the nearest cell.

  Args:
    maps: `[batch, height, width, channels]`, floating.
    boxes: `[batch, count, 4]`, corners in pixels of the network's input. They have no gradient.
    size: bins of a box, or their rows and columns.
    stride: pixels of the input per cell of the map.
    sampling_ratio: samples of a bin, in both directions; 0 for one per cell that a bin is long,
      rounded up.
    aligned: whether pixels lie at half numbers (the originals' `aligned=True`). Else everything is
      half a cell off, and boxes are at least a cell long, as in detectors before 2019.
    implementation: 'auto' takes the Pallas kernel on TPUs where the maps fit in VMEM, and 'xla' for
      all else; 'reference' is the definition, with gathers, 'xla' two products a box, 'tpu' the
      kernel for float32 and bfloat16.

  Returns:
    `[batch, count, rows, columns, channels]` in `maps`' dtype. Boxes without extent give 0 where
    they are aligned and the sampling ratio is 0.

  Raises:
    ValueError: shapes, dtypes or the implementation that do not go together, by name.

  Examples:
    >>> maps, boxes = jnp.ones((1, 16, 16, 8)), jnp.array([[[0.0, 0.0, 32.0, 32.0]]])
    >>> jax.eval_shape(lambda x: roi_align(x, boxes, size=7, stride=4), maps).shape
    (1, 1, 7, 7, 8)
  """
  return roi_align_pyramid(
    [maps],
    boxes,
    size=size,
    strides=[stride],
    sampling_ratio=sampling_ratio,
    aligned=aligned,
    implementation=implementation,
  )


def roi_align_pyramid(
  maps: Sequence[jax.Array],
  boxes: jax.Array,
  *,
  size: int | tuple[int, int],
  strides: Sequence[float],
  finest_scale: float = 56,
  sampling_ratio: int = 0,
  aligned: bool = True,
  implementation: str = 'auto',
) -> jax.Array:
  """`roi_align` of every box from the level of a pyramid that fits its size, see `level_of`.

  Args:
    maps: `[batch, height, width, channels]` of every level, the finest first.
    boxes: `[batch, count, 4]`, corners in pixels of the network's input. They have no gradient.
    size: bins of a box, or their rows and columns.
    strides: pixels of the input per cell of each map.
    finest_scale: see `level_of`.
    sampling_ratio: see `roi_align`.
    aligned: see `roi_align`.
    implementation: see `roi_align`.

  Returns:
    `[batch, count, rows, columns, channels]` in the maps' dtype.

  Raises:
    ValueError: see `roi_align`.
  """
  size = (size, size) if isinstance(size, int) else tuple(size)
  maps, strides = tuple(maps), tuple(strides)
  _check(maps, boxes, size, strides, sampling_ratio, implementation)
  boxes = jax.lax.stop_gradient(boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32)))
  levels = level_of(boxes, len(maps), finest_scale)
  options = (size, strides, sampling_ratio, aligned)

  def align_part(*arrays):
    *maps, boxes, levels = arrays
    if implementation == 'reference':
      return reference.roi_align(maps, boxes, levels, **_named(options))
    return _roi_align(tuple(maps), boxes, levels, options, implementation)

  of_map, of_boxes = ('batch', None, None, None), ('batch', None, None)
  return parallel.map_shards(
    align_part,
    *maps,
    boxes,
    levels,
    names=(*(of_map for _ in maps), of_boxes, of_boxes[:2]),
    out_names=(*of_map, None),
  )


def _named(options):
  return dict(zip(('size', 'strides', 'sampling_ratio', 'aligned'), options, strict=True))


def _forms(implementation, maps, *, gradient):
  """The forms among which the platform chooses."""
  forms = {'xla': xla.roi_align_vjp if gradient else xla.roi_align}
  kernel = tpu.roi_align_vjp if gradient else tpu.roi_align
  if implementation == 'tpu':
    return {'xla': kernel}
  if implementation == 'auto' and maps[0].dtype in _KERNEL_DTYPES and tpu.slab(maps, gradient):
    forms['tpu'] = kernel
  return forms


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
@functools.partial(jax.jit, static_argnums=(3, 4))
def _roi_align(maps, boxes, levels, options, implementation):
  forms = _forms(implementation, maps, gradient=False)
  return dispatch.by_platform(maps, boxes, levels, **forms, **_named(options))


def _forward(maps, boxes, levels, options, implementation):
  return _roi_align(maps, boxes, levels, options, implementation), (maps, boxes, levels)


def _backward(options, implementation, residuals, cotangent):
  forms = _forms(implementation, residuals[0], gradient=True)
  gradients = dispatch.by_platform(cotangent, *residuals, **forms, **_named(options))
  return tuple(gradients), None, None


_roi_align.defvjp(_forward, _backward)


def _check(maps, boxes, size, strides, sampling_ratio, implementation):
  op = 'roi_align'
  require = functools.partial(dispatch.require, op)
  dispatch.check_implementation(op, implementation, IMPLEMENTATIONS)
  require(
    boxes.ndim == 3 and boxes.shape[2] == 4,
    f'boxes must be [batch, count, 4], got {boxes.shape}',
  )
  require(len(maps) > 0 and len(maps) == len(strides), f'{len(maps)} maps, {len(strides)} strides')
  for x in maps:
    require(
      x.ndim == 4 and x.shape[0] == boxes.shape[0],
      f'maps must be [batch, height, width, channels] of the batch of boxes {boxes.shape}, got '
      f'{x.shape}',
    )
    require(jnp.issubdtype(x.dtype, jnp.floating), f'maps must be floating, got {x.dtype}')
    require(
      x.shape[3] == maps[0].shape[3] and x.dtype == maps[0].dtype,
      f'levels must have equal channels and dtypes, got {maps[0].dtype}{maps[0].shape} and '
      f'{x.dtype}{x.shape}',
    )
    dispatch.check_kernel_dtype(op, implementation, x.dtype)
  require(
    len(size) == 2 and min(size) > 0 and sampling_ratio >= 0,
    f'size {size} must be two positive numbers, sampling_ratio {sampling_ratio} 0 or more',
  )
  require(
    implementation != 'tpu' or (tpu.slab(maps, False) and tpu.slab(maps, True)),
    "implementation 'tpu' keeps the maps in VMEM, and these are too large; take 'xla'",
  )


def level_of(boxes: jax.Array, count: int, finest_scale: float = 56) -> jax.Array:
  """The level of a pyramid from which a box is cut, 0 for the finest.

  Source: Feature Pyramid Networks, Lin et al. 2017 (arXiv 1612.03144), equation 1.

  Args:
    boxes: `[..., 4]`, corners in pixels.
    count: of levels.
    finest_scale: boxes of an area of at least this, squared, times 4^level are of a level or above.

  Returns:
    `[...]` int32 from 0 to `count - 1`.
  """
  x_min, y_min, x_max, y_max = jnp.unstack(boxes, axis=-1)
  scale = jnp.sqrt((x_max - x_min) * (y_max - y_min))
  level = jnp.floor(jnp.log2(scale / finest_scale + 1e-6))
  return jnp.clip(level, 0, count - 1).astype(jnp.int32)
