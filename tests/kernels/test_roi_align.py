import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import kernels
from crossattn_jax.kernels.roi_align import api


def plain_sample(x, y, u):
  """Bilinear; zero more than a cell outside, the nearest cell's value outside."""
  height, width = x.shape[:2]
  if y < -1 or y > height or u < -1 or u > width:
    return np.zeros(x.shape[2])
  y, u = np.clip(y, 0, height - 1), np.clip(u, 0, width - 1)
  top, left = int(y), int(u)
  bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
  y, u = y - top, u - left
  upper = (1 - u) * x[top, left] + u * x[top, right]
  return (1 - y) * upper + y * ((1 - u) * x[bottom, left] + u * x[bottom, right])


def plain(x, box, size, stride, sampling_ratio, aligned):
  """RoIAlign of one box, sample by sample."""
  start, stop = (np.array([box[k + 1], box[k]]) / stride - 0.5 * aligned for k in (0, 2))
  extent = stop - start if aligned else np.maximum(stop - start, 1)
  bin_size = extent / size
  counts = [sampling_ratio or math.ceil(side) for side in bin_size]
  out = np.zeros((*size, x.shape[2]))
  for cell in np.ndindex(*size):
    samples = [
      plain_sample(x, *(start + (np.array(cell) + (np.array(i) + 0.5) / counts) * bin_size))
      for i in np.ndindex(*counts)
    ]
    out[cell] = np.sum(samples, axis=0) / len(samples) if samples else 0
  return out


def scene(seed=0, batch=2, map_size=(11, 14), channels=3, count=9, stride=4):
  """Maps and boxes: small and large ones, beyond every border, without extent."""
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((batch, *map_size, channels))
  low = rng.uniform(-30, 4 * map_size[0], (batch, count, 2))
  boxes = np.concatenate([low, low + 90 * rng.random((batch, count, 2)) ** 2], axis=-1)
  whole = [-100, -90, 300, 400]
  edges = [[0, 0, 4 * map_size[1], 4 * map_size[0]], [5, 6, 5, 6], [8, 8, 36, 36], whole]
  boxes[:, :4] = np.array(edges)
  return x, boxes


@pytest.mark.parametrize('aligned', [True, False], ids=['aligned', 'not aligned'])
@pytest.mark.parametrize('sampling_ratio', [0, 1, 3])
def test_a_bin_is_the_mean_of_its_samples(sampling_ratio, aligned):
  x, boxes = scene()
  options = {'size': (3, 2), 'stride': 4, 'sampling_ratio': sampling_ratio, 'aligned': aligned}
  with jax.enable_x64(True):
    out = jax.jit(functools.partial(kernels.roi_align, **options))(x, boxes)
  expected = [[plain(m, box, **options) for box in each] for m, each in zip(x, boxes, strict=True)]
  np.testing.assert_allclose(out, expected, atol=1e-12)


def test_levels_are_those_of_the_boxes_sizes():
  sides = np.array([0, 10, 111, 112, 223.9, 224, 447, 448, 5000])
  boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=-1)
  np.testing.assert_array_equal(api.level_of(jnp.asarray(boxes), 4), [0, 0, 0, 1, 1, 2, 2, 3, 3])
  long = jnp.array([[0.0, 0, 56 * 8, 56 / 2]])  # A square of the same area has sides of 112.
  assert int(api.level_of(long, 4)[0]) == 1
