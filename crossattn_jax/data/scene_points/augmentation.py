"""Random changes of point clouds in training: their shape, place, size and colours.

As in the second stage of MIT (Yang et al. 2023), which has them from Choy et al. 2019 (arXiv
1904.08755). Draws are arguments of the functions that change something, `random_*` make them.
"""

import math

import ml_collections
import numpy as np
from scipy import ndimage

from crossattn_jax.data import pipeline
from crossattn_jax.geometry import points as points_lib

# Grids of noise: metres between their nodes, metres that noise of 1 moves a point.
_ELASTIC = ((0.2, 0.4), (0.8, 1.6))


def add_options(config: ml_collections.ConfigDict) -> None:
  """Adds `config.dataset.augmentation`: scenes are turned, scaled and moved, nothing else."""
  config.augmentation = ml_collections.ConfigDict(
    {
      # Most that a scene is turned about x, y and z, in radians.
      'rotate': (math.pi / 64, math.pi / 64, math.pi),
      # (Least, most) factor of its size.
      'scale': (0.9, 1.1),
      # Scenes are moved by up to as many voxels along each axis.
      'shift': 100,
      # Probability of a mirror image in x, and in y.
      'flip': 0.0,
      # Probability of a distortion by smooth noise.
      'elastic': 0.0,
      # The grids of it, one after the other: (metres between nodes, metres that noise of 1 moves a
      # point).
      'elastic_grids': _ELASTIC,
      # Of colours, in levels 0..255.
      'color': {
        # Probability of a stretch of each channel to all levels, to a random degree.
        'contrast': 0.0,
        # Probability that all points change alike.
        'translation': 0.0,
        # The most that they do.
        'translation_levels': 25.5,
        # Probability that each voxel changes by noise of its own.
        'jitter': 0.0,
        # Its standard deviation.
        'jitter_levels': 12.75,
        # Most by which hue turns, of a whole turn.
        'hue': 0.0,
        # Most by which saturation is more or less, of 1.
        'saturation': 0.0,
      },
    }
  )


def published() -> dict[str, object]:
  """What `config.dataset.augmentation.update` takes for the published training of segmentation."""
  color = {'contrast': 0.2, 'translation': 0.95, 'jitter': 0.95, 'hue': 0.5, 'saturation': 0.2}
  # Mirrors have half of 0.95, and the draws of both axes depend on each other a little.
  return {'flip': 0.475, 'elastic': 0.95, 'color': color}


def check_options(config: ml_collections.ConfigDict) -> None:
  """Refuses wrong values of the keys of `add_options`.

  Raises:
    ValueError: names the key.
  """
  require, options = pipeline.requirement(config), config.augmentation
  require(
    len(options.rotate) == 3 and min(options.rotate) >= 0,
    'augmentation.rotate',
    'three angles in radians, at least 0',
  )
  require(
    len(options.scale) == 2 and 0 < options.scale[0] <= options.scale[1],
    'augmentation.scale',
    '(least, most), positive',
  )
  require(options.shift >= 0, 'augmentation.shift', 'at least 0 voxels')
  require(
    all(len(grid) == 2 and grid[0] > 0 for grid in options.elastic_grids),
    'augmentation.elastic_grids',
    'pairs (metres between nodes, metres that noise of 1 moves a point)',
  )
  probabilities = ('flip', 'elastic', 'color.contrast', 'color.translation', 'color.jitter')
  for name in probabilities:
    require(0 <= _value(options, name) <= 1, f'augmentation.{name}', 'a probability')
  for name in ('translation_levels', 'jitter_levels', 'hue'):
    require(options.color[name] >= 0, f'augmentation.color.{name}', 'at least 0')
  require(0 <= options.color.saturation <= 1, 'augmentation.color.saturation', 'from 0 to 1')


def _value(options: ml_collections.ConfigDict, name: str) -> float:
  for part in name.split('.'):
    options = options[part]
  return options


# The shape of a scene.


def random_transform(
  rng: np.random.Generator, options: ml_collections.ConfigDict, *, flip: bool
) -> np.ndarray:
  """A rotation about all axes in random order, times a scale, and maybe a mirror: `[3, 3]`.

  Args:
    rng: of all draws.
    options: `config.dataset.augmentation`.
    flip: whether mirror images may be drawn.
  """
  angles = rng.uniform(-1, 1, 3) * options.rotate
  transform = points_lib.rotation(angles, rng.permutation(3)) * rng.uniform(*options.scale)
  if flip:
    transform[:2] *= np.where(rng.random((2, 1)) < options.flip, -1, 1)
  return transform


def random_distortion(
  points: np.ndarray, rng: np.random.Generator, options: ml_collections.ConfigDict
) -> np.ndarray:
  """Points `[points, 3]` in metres, maybe distorted."""
  if rng.random() < options.elastic:
    for granularity, magnitude in options.elastic_grids:
      size = grid_size(points, granularity)
      noise = rng.standard_normal((*size, 3), np.float32)
      points = distort(points, noise, granularity, magnitude)
  return points


def grid_size(points: np.ndarray, granularity: float) -> tuple[int, ...]:
  """Nodes along each axis of a grid around points, `granularity` metres apart."""
  extent = points.max(axis=0) - points.min(axis=0)
  return tuple((extent // granularity).astype(int) + 3)


def distort(
  points: np.ndarray, noise: np.ndarray, granularity: float, magnitude: float
) -> np.ndarray:
  """Elastic distortion: moves points by smoothed noise.

  Args:
    points: `[points, 3]` in metres.
    noise: `[*grid_size(points, granularity), 3]`, standard normal.
    granularity: metres between the nodes, the first of which is as much below the least point.
    magnitude: metres that noise of 1 moves a point.

  Returns:
    `[points, 3]`.
  """
  third = np.full(3, 1 / 3, noise.dtype)
  for axis in (0, 1, 2) * 2:
    noise = ndimage.convolve1d(noise, third, axis, mode='constant')
  place = ((points - points.min(axis=0)) / granularity + 1).T
  moved = [
    ndimage.map_coordinates(noise[..., axis], place, points.dtype, order=1, mode='constant')
    for axis in range(3)
  ]
  return points + magnitude * np.stack(moved, axis=1)


# Its colours, all `[points, 3]` levels 0..255.


def random_colors(
  colors: np.ndarray, rng: np.random.Generator, options: ml_collections.ConfigDict
) -> np.ndarray:
  """Maybe changes colours.

  Args:
    colors: `[points, 3]` levels 0..255.
    rng: of all draws.
    options: `config.dataset.augmentation.color`.

  Returns:
    float32 `[points, 3]` levels 0..255.
  """
  colors = colors.astype(np.float32)
  if rng.random() < options.contrast:
    colors = stretch_contrast(colors, rng.random(dtype=np.float32))
  if rng.random() < options.translation:
    most = options.translation_levels
    colors = add_levels(colors, rng.uniform(-most, most, 3).astype(np.float32))
  if rng.random() < options.jitter:
    noise = rng.standard_normal(colors.shape, np.float32)
    colors = add_levels(colors, np.float32(options.jitter_levels) * noise)
  if options.hue or options.saturation:
    hue, saturation = rng.uniform(-1, 1, 2) * [options.hue, options.saturation]
    colors = turn_hue(colors, hue, 1 + saturation).astype(np.float32)
  return colors


def stretch_contrast(colors: np.ndarray, degree: float) -> np.ndarray:
  """Mixes colours with themselves stretched to 0..255 in each channel."""
  low, high = colors.min(axis=0, keepdims=True), colors.max(axis=0, keepdims=True)
  scale = 255 / np.maximum(high - low, 1)  # A channel of one level becomes 0.
  return (1 - degree) * colors + degree * ((colors - low) * scale)


def add_levels(colors: np.ndarray, levels: np.ndarray) -> np.ndarray:
  """Adds `levels`, of all points or of each, and stays in 0..255."""
  return np.clip(colors + levels, 0, 255)


def turn_hue(colors: np.ndarray, hue: float, saturation: float) -> np.ndarray:
  """Turns hues by a share of a whole turn, multiplies saturations; truncates to uint8."""
  h, s, v = np.moveaxis(to_hsv(colors), -1, 0)
  return to_rgb(np.stack([(h + hue) % 1, np.clip(s * saturation, 0, 1), v], axis=-1))


def to_hsv(colors: np.ndarray) -> np.ndarray:
  """From red, green and blue to hue and saturation in 0..1 and value in 0..255."""
  red, green, blue = np.moveaxis(colors.astype(float), -1, 0)
  value = colors.max(axis=-1)
  span = value - colors.min(axis=-1)
  unit = np.maximum(span, np.finfo(float).tiny)
  sixth = np.select(
    [red == value, green == value],
    [(green - blue) / unit, 2 + (blue - red) / unit],
    4 + (red - green) / unit,
  )
  saturation = span / np.maximum(value, np.finfo(float).tiny)
  return np.stack([sixth / 6 % 1, saturation, value], axis=-1)


def to_rgb(hsv: np.ndarray) -> np.ndarray:
  """Undoes `to_hsv`, truncated to uint8."""
  hue, saturation, value = np.moveaxis(hsv, -1, 0)
  place = (np.array([5, 3, 1]) + 6 * hue[..., None]) % 6
  share = np.clip(np.minimum(place, 4 - place), 0, 1)
  return (value[..., None] * (1 - saturation[..., None] * share)).astype(np.uint8)
