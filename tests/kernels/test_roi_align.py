import functools
import math

import jax
from jax import export
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from crossattn_jax import kernels, parallel
from crossattn_jax.kernels.roi_align import api, tpu


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


@pytest.mark.parametrize(
  ('sampling_ratio', 'aligned'),
  [
    (0, True),
    (3, False),
    pytest.param(0, False, marks=pytest.mark.extended),
    pytest.param(1, True, marks=pytest.mark.extended),
  ],
)
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


OPTIONS = [
  {'size': (3, 2), 'strides': [4, 8], 'sampling_ratio': 0, 'aligned': True},
  {'size': (2, 9), 'strides': [4], 'sampling_ratio': 2, 'aligned': False},
]


def pyramid(options, dtype):
  """Maps, the boxes, a cotangent."""
  x, boxes = scene()
  maps = [x, np.random.default_rng(1).standard_normal((2, 6, 19, 3))][: len(options['strides'])]
  shape = (*boxes.shape[:2], *options['size'], 3)
  cotangent = np.random.default_rng(2).standard_normal(shape)
  return [jnp.asarray(m, dtype) for m in maps], jnp.asarray(boxes), jnp.asarray(cotangent, dtype)


@functools.cache
def compiled(i, implementation):
  """Value and gradients of the maps."""

  def run(maps, boxes, cotangent):
    align = lambda maps: kernels.roi_align_pyramid(
      maps, boxes, **OPTIONS[i], finest_scale=20, implementation=implementation
    )
    out, pull_back = jax.vjp(align, maps)
    return [out, *pull_back(cotangent)[0]]

  return jax.jit(run)


@pytest.mark.parametrize('i', [pytest.param(0, marks=pytest.mark.extended), 1])
def test_windows_have_the_values_and_gradients_of_the_definition(i):
  with jax.enable_x64(True):
    arguments = pyramid(OPTIONS[i], np.float64)
    expected = compiled(i, 'reference')(*arguments)
    for a, b in zip(compiled(i, 'auto')(*arguments), expected, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.extended
@pytest.mark.parametrize('i', range(2))
def test_the_kernels_have_the_values_and_gradients_of_the_definition(i):
  maps, boxes, cotangent = pyramid(OPTIONS[i], np.float32)
  levels = api.level_of(boxes, len(maps), 20)
  out = tpu.roi_align(maps, boxes, levels, **OPTIONS[i], interpret=True)
  gradients = tpu.roi_align_vjp(cotangent, maps, boxes, levels, **OPTIONS[i], interpret=True)
  expected = compiled(i, 'auto')(maps, boxes, cotangent)
  for a, b in zip([out, *gradients], expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.extended
def test_bfloat16_is_rounded_once():
  maps, boxes, cotangent = pyramid(OPTIONS[0], jnp.bfloat16)
  rounded = compiled(0, 'auto')(maps, boxes, cotangent)
  wide = [x.astype(jnp.float32) for x in maps]
  exact = compiled(0, 'auto')(wide, boxes, cotangent.astype(jnp.float32))
  for a, b in zip(rounded, exact, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_array_equal(a, b.astype(jnp.bfloat16))


@pytest.mark.extended
def test_a_split_batch_has_the_same_values_and_gradients():
  maps, boxes, cotangent = pyramid(OPTIONS[0], np.float32)
  twice = lambda x: jnp.concatenate([x, x])
  arguments = jax.tree.map(twice, (maps, boxes, cotangent))
  expected = compiled(0, 'auto')(maps, boxes, cotangent)
  mesh = parallel.create_mesh(data=4, devices=jax.devices()[:4])
  with jax.set_mesh(mesh):
    split = jax.device_put(arguments, NamedSharding(mesh, PartitionSpec('data')))
    results = compiled(0, 'auto')(*split)
  for a, b in zip(results, expected, strict=True):
    assert a.sharding.spec[0] == 'data'
    np.testing.assert_allclose(a, twice(b), atol=1e-5)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'boxes': np.zeros((2, 4))}, r'boxes must be \[batch, count, 4\], got \(2, 4\)'),
    ({'boxes': np.zeros((3, 5, 4))}, r'maps must be .* of the batch of boxes \(3, 5, 4\)'),
    ({'maps': np.zeros((2, 8, 8, 3), int)}, 'maps must be floating, got int'),
    ({'size': 0}, r'size \(0, 0\) must be two positive numbers'),
    ({'implementation': 'cuda'}, "unknown implementation 'cuda'"),
  ],
)
def test_what_does_not_fit_is_named(changes, message):
  arguments = {'maps': np.zeros((2, 8, 8, 3)), 'boxes': np.zeros((2, 5, 4)), 'size': 7, **changes}
  with pytest.raises(ValueError, match=message):
    kernels.roi_align(**arguments)


@pytest.mark.extended
def test_it_is_exported_for_any_batch_size():
  maps, boxes, _ = pyramid(OPTIONS[0], np.float32)
  (batch,) = export.symbolic_shape('batch')
  shapes = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in (*maps, boxes)]
  align = lambda *arrays: kernels.roi_align_pyramid(arrays[:2], arrays[2], **OPTIONS[0])
  exported = export.export(jax.jit(align), platforms=['cpu', 'tpu'])(*shapes)
  one = jax.tree.map(lambda x: x[:1], (*maps, boxes))
  np.testing.assert_allclose(exported.call(*one), align(*one), atol=1e-6)
