"""Image and position-embedding resizing with the exact weights of torch's `interpolate`.

`jax.image.resize` differs: its cubic has another coefficient (-0.5), it smooths when it shrinks and
it renormalises the weights at the border. A resize along one axis is a constant matrix, built here
in float64 while tracing and multiplied at highest precision.
"""

from collections.abc import Sequence
import math

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np

_CUBIC = -0.75  # torch's cubic coefficient; Keys' own choice is -0.5


def _linear_kernel(distance: np.ndarray) -> np.ndarray:
  return np.maximum(1 - distance, 0)


def _cubic_kernel(distance: np.ndarray) -> np.ndarray:
  a, z = _CUBIC, distance
  near = (a + 2) * z**3 - (a + 3) * z**2 + 1
  far = a * z**3 - 5 * a * z**2 + 8 * a * z - 4 * a
  return np.where(z <= 1, near, np.where(z < 2, far, 0))


_KERNELS = {'bilinear': (_linear_kernel, 1), 'bicubic': (_cubic_kernel, 2)}


def resize_matrix(
  size_in: int, size_out: int, method: str = 'bicubic', align_corners: bool = False
) -> np.ndarray:
  """Returns the float64 matrix `[size_out, size_in]` that resizes one axis.

  No anti-aliasing, border samples replicated.

  Args:
    size_in: length of the axis.
    size_out: length of the result.
    method: 'bicubic' or 'bilinear'.
    align_corners: whether the first and the last samples of both lie on each other, rather than
      the edges of the pixels around them.

  Raises:
    ValueError: if `method` is neither 'bilinear' nor 'bicubic'.
  """
  if method not in _KERNELS:
    raise ValueError(f'unknown resize method {method!r}; known are {sorted(_KERNELS)}')
  kernel, radius = _KERNELS[method]
  if align_corners:
    position = np.arange(size_out) * (size_in - 1) / max(size_out - 1, 1)
  else:
    position = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
  base = np.floor(position).astype(int)
  matrix = np.zeros((size_out, size_in))
  for offset in range(1 - radius, 1 + radius):
    sample = base + offset
    column = np.clip(sample, 0, size_in - 1)
    np.add.at(matrix, (np.arange(size_out), column), kernel(np.abs(position - sample)))
  return matrix


def resize(
  image: jax.Array, size: Sequence[int], method: str = 'bicubic', align_corners: bool = False
) -> jax.Array:
  """Resizes height and width as `torch.nn.functional.interpolate` does.

  Args:
    image: `[..., height, width, channels]`.
    size: (height, width) of the result.
    method: 'bicubic' or 'bilinear'.
    align_corners: see `resize_matrix`.

  Returns:
    `[..., *size, channels]` in `image`'s dtype, computed in at least float32.

  Examples:
    >>> resize(jnp.arange(4.0).reshape(2, 2, 1), (2, 4), method='bilinear')[0, :, 0].tolist()
    [0.0, 0.25, 0.75, 1.0]
  """
  dtype = jnp.promote_types(image.dtype, jnp.float32)
  result = image.astype(dtype)
  height, width = image.shape[-3:-1]
  if height != size[0]:
    rows = jnp.asarray(resize_matrix(height, size[0], method, align_corners), dtype)
    result = jnp.einsum('yh,...hwc->...ywc', rows, result, precision='highest')
  if width != size[1]:
    columns = jnp.asarray(resize_matrix(width, size[1], method, align_corners), dtype)
    result = jnp.einsum('xw,...ywc->...yxc', columns, result, precision='highest')
  return result.astype(image.dtype)


def nearest_corner_aligned(size_in: int, size_out: int) -> np.ndarray:
  """Returns the sample nearest to each of `size_out` that span the same range, ties upwards."""
  position = np.arange(size_out) * (size_in - 1) / max(size_out - 1, 1)
  return np.floor(position + 0.5).astype(int)


def reached_by_zoom(size_in: Sequence[int], size_out: Sequence[int]) -> np.ndarray:
  """Which pixels of a corner-aligned result SciPy's `zoom` reads, bool of `size_out`.

  At some sizes rounding puts the last row or column past the end, where it reads 0.
  """
  steps = [(long - 1) / max(short - 1, 1) for long, short in zip(size_in, size_out, strict=True)]
  return np.logical_and.outer(
    *(
      step * np.arange(short) <= long - 1
      for step, long, short in zip(steps, size_in, size_out, strict=True)
    )
  )


def upsample_nearest(image: jax.Array, size: Sequence[int]) -> jax.Array:
  """Repeats rows and columns as torch's `interpolate(mode='nearest')` does.

  Args:
    image: `[..., height, width, channels]`.
    size: (height, width) of the result.
  """
  for axis, length in ((-3, size[0]), (-2, size[1])):
    length_in = image.shape[axis]
    if length == length_in:
      continue
    if length % length_in == 0:
      image = jnp.repeat(image, length // length_in, axis=axis)
    else:
      # torch rounds the ratio to float32.
      nearest = np.arange(length, dtype=np.float32) * np.float32(length_in / length)
      image = jnp.take(image, np.minimum(nearest.astype(int), length_in - 1), axis=axis)
  return image


def center_crop(image: jax.Array, size: Sequence[int]) -> jax.Array:
  """Cuts the middle `size` = (height, width) out of `[..., height, width, channels]`.

  An odd margin is halved as Python rounds (half to even), which is what timm does.

  Raises:
    ValueError: if the image is smaller than `size` along an axis.
  """
  height, width = image.shape[-3:-1]
  if height < size[0] or width < size[1]:
    raise ValueError(f'cannot crop {tuple(size)} out of an image of {height} x {width}')
  top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
  return image[..., top : top + size[0], left : left + size[1], :]


def resize_position_embedding(
  embedding: jax.Array, grid: Sequence[int], new_grid: Sequence[int]
) -> jax.Array:
  """Resizes learnt position embeddings bicubically to another patch grid; a class token stays.

  Args:
    embedding: `[..., (1 +) grid_height * grid_width, channels]`, the class token first if there is
      one, then the patches row by row.
    grid: (height, width) of the patch grid that `embedding` was learnt on.
    new_grid: (height, width) wanted.

  Returns:
    `[..., (1 +) new_height * new_width, channels]`.

  Raises:
    ValueError: if `embedding` does not have one vector per token of `grid`.

  Examples:
    >>> embedding = jnp.ones((1, 1 + 14 * 14, 64))
    >>> jax.eval_shape(lambda x: resize_position_embedding(x, (14, 14), (24, 24)), embedding).shape
    (1, 577, 64)
  """
  tokens = embedding.shape[-2]
  extra = tokens - math.prod(grid)
  if extra not in (0, 1):
    raise ValueError(
      f'{tokens} position embeddings do not cover a class token and a grid of {tuple(grid)} = '
      f'{math.prod(grid)} patches; pass the grid that they were learnt on'
    )
  class_token, patches = embedding[..., :extra, :], embedding[..., extra:, :]
  patches = rearrange(patches, '... (h w) c -> ... h w c', h=grid[0])
  patches = rearrange(resize(patches, new_grid), '... h w c -> ... (h w) c')
  return jnp.concatenate([class_token, patches], axis=-2)
