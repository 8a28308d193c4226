"""Deformable sampling in both forms, against bilinear samples one by one."""

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import kernels, parallel
from crossattn_jax.kernels.deformable_sampling import xla

SIZES = ((3, 5), (2, 1))
IMPLEMENTATIONS = ('reference', 'xla')


def arrays(dtype=np.float64, batch=2):
  """Values, locations of which some are outside, some at centres of cells, and weights."""
  rng = np.random.default_rng(0)
  value = rng.standard_normal((batch, 17, 2, 3))
  locations = rng.uniform(-0.3, 1.3, (batch, 4, 2, 2, 3, 2))
  locations[:, 0, :, 0, 0] = [0.3, 0.5]  # The second cell of the second row.
  locations[:, 0, :, 0, 1] = [0.1, 1 / 6]  # The first cell.
  locations[:, 0, :, 1, 2] = 1e9
  weights = rng.uniform(0, 1, (batch, 4, 2, 2, 3))
  return [jnp.asarray(x, dtype) for x in (value, locations, weights)]


def sample(implementation):
  return jax.jit(lambda *x: kernels.deformable_sampling(*x, SIZES, implementation=implementation))


def bilinear(image, x, y):
  """Of `[height, width, channels]` at a fraction of its sides, cell centres at halves."""
  height, width = image.shape[:2]
  x, y = x * width - 0.5, y * height - 0.5
  total = 0
  for row in range(height):
    for column in range(width):
      weight = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
      total = total + weight * image[row, column]
  return total


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_is_a_weighted_sum_of_bilinear_samples(implementation):
  with jax.enable_x64(True):
    value, locations, weights = arrays()
    out = sample(implementation)(value, locations, weights)
  value, locations, weights = map(np.asarray, (value, locations, weights))
  maps = value[:, :15].reshape(2, 3, 5, 2, 3), value[:, 15:].reshape(2, 2, 1, 2, 3)
  expected = np.zeros(out.shape)
  for b, q, h, level, k in np.ndindex(weights.shape):
    cell = bilinear(maps[level][b, :, :, h], *locations[b, q, h, level, k])
    expected[b, q, h] += weights[b, q, h, level, k] * cell
  np.testing.assert_allclose(out, expected, atol=1e-12)


def test_gradients_are_those_of_the_definition_and_of_products():
  """At a cell's centre too, where the slopes to both sides differ."""
  with jax.enable_x64(True):
    operands = arrays()
    out, pull_back = jax.vjp(lambda *x: xla.deformable_sampling(*x, sizes=SIZES), *operands)
    cotangent = jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
    _, pull_own_back = jax.vjp(sample('auto'), *operands)
    for a, b in zip(pull_own_back(cotangent), pull_back(cotangent), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.extended
@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_bfloat16_values_have_float32_positions(implementation):
  value, locations, weights = arrays(jnp.float32)
  rounded = value.astype(jnp.bfloat16)
  out = sample(implementation)(rounded, locations, weights)
  exact = sample('auto')(rounded.astype(jnp.float32), locations, weights)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)


@pytest.mark.extended
def test_a_split_batch_has_the_same_values():
  operands = arrays(jnp.float32, batch=8)
  expected = sample('auto')(*operands)
  mesh = parallel.create_mesh(data=8)
  with jax.set_mesh(mesh):
    split = [
      jax.device_put(x, jax.NamedSharding(mesh, jax.P('data', *(None,) * (x.ndim - 1))))
      for x in operands
    ]
    out = sample('auto')(*split)
  assert out.sharding.spec[0] == 'data'
  np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize(('platform', 'gathers'), [('cpu', True), ('cuda', True), ('tpu', False)])
def test_tpus_gather_nothing(platform, gathers):
  program = export.export(sample('auto'), platforms=[platform])(*arrays(jnp.float32))
  assert ('stablehlo.gather' in program.mlir_module()) == gathers


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'value': (2, 16, 2, 3)}, r'value has 16 positions, maps of .* have 17'),
    ({'value': (17, 2, 3)}, r'value must be \[batch, positions, heads, head_dim\]'),
    ({'weights': (2, 4, 3, 2, 3)}, r'weights must be .* got \(2, 4, 3, 2, 3\)'),
    ({'weights': (2, 4, 2, 1, 3)}, 'are not of 2 levels'),
    ({'locations': (2, 4, 2, 2, 3)}, 'locations must have the shape of weights'),
  ],
)
def test_what_does_not_go_together_is_said(change, message):
  shapes = {'value': (2, 17, 2, 3), 'locations': (2, 4, 2, 2, 3, 2), 'weights': (2, 4, 2, 2, 3)}
  with pytest.raises(ValueError, match=message):
    kernels.deformable_sampling(*(jnp.ones(x) for x in (shapes | change).values()), SIZES)


def test_an_unknown_implementation_is_named():
  with pytest.raises(ValueError, match="unknown implementation 'gpu'; there are auto, reference"):
    kernels.deformable_sampling(*arrays(jnp.float32), SIZES, implementation='gpu')
