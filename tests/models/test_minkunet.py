"""MinkUNet: its parameters, and that padding does not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.geometry import points
from crossattn_jax.layers import sparse_convolution as sparse
from crossattn_jax.models import minkunet


def scene(count=60, padded=0, seed=0):
  """Windows of colours and tables of a scene, and rows of padding that hold what they like."""
  rng = np.random.default_rng(seed)
  cells = rng.permutation(np.argwhere(np.ones((20, 20, 1))))[:count]  # At stride 16 there are four.
  colors = rng.standard_normal((count, 3)).astype(np.float32)
  windows = points.gather(colors, points.neighbours(cells, 5))
  levels = []
  for _, neighbours, link in points.levels(cells, 5):
    tables = [neighbours, link.children, 8 * link.parent + link.octant] if link else [neighbours]
    tables = [
      np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padded)], constant_values=-1) for x in tables
    ]
    levels.append(sparse.Level(*(jnp.asarray(table)[None] for table in tables)))
  windows = np.pad(windows, ((0, padded), (0, 0)), constant_values=np.nan)
  return jnp.asarray(windows)[None], levels


COUNTS = {
  '14a': 8_024_500, '14b': 8_961_588, '14c': 11_919_924, '14d': 43_315_764, '18a': 15_493_172,
  '18b': 17_204_660, '18d': 79_874_484, '34a': 36_607_412, '34b': 36_226_484, '34c': 37_856_052,
}  # fmt: skip


@pytest.mark.parametrize(
  'variant', [pytest.param(x, marks=() if x == '18a' else pytest.mark.extended) for x in COUNTS]
)
def test_parameters_are_as_many_as_the_originals(variant):
  model = models.create_model(f'minkunet{variant}')
  params = jax.eval_shape(model.init, jax.random.key(0), *scene(count=2))['params']
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[variant]


@pytest.mark.slow
def test_padding_does_not_matter():
  widths, depths = (2, 3, 4, 5, 4, 3, 3, 2), (1,) * 8
  model = minkunet.MinkUNet(widths, depths, 6, stem_width=4, param_dtype=jnp.float64)
  with jax.enable_x64(True):
    plain, padded = scene(), scene(padded=7)
    params = model.init(jax.random.key(0), *plain)

    @jax.jit
    def step(params, inputs):
      def loss(params):
        (logits, _), updates = model.apply(params, *inputs, True, mutable=['batch_stats'])
        return jnp.square(logits[:, :60]).sum(), updates

      return jax.value_and_grad(loss, has_aux=True)(params)

    expected, got = step(params, plain), step(params, padded)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, expected)


def test_another_number_of_resolutions_is_refused():
  windows, levels = scene(count=2)
  with pytest.raises(ValueError, match='MinkUNet takes cells at 5 resolutions, got 4'):
    jax.eval_shape(minkunet.MinkUNet().init, jax.random.key(0), windows, levels[:4])


def test_widths_and_depths_are_of_eight_stages():
  with pytest.raises(ValueError, match=r'depths=\(1, 1\) needs one entry for each of 8 stages'):
    models.create_model('minkunet18a', depths=(1, 1))
