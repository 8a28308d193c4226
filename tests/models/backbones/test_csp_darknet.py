"""Sizes and initial values; the recorded cases are replayed in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.models.backbones import csp_darknet


def _count(module, channels):
  x = jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)
  params = jax.eval_shape(module.init, jax.random.key(0), x)['params']
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_stem_of_six_pixels_halves_even_maps():
  x = jnp.zeros((1, 26, 38, 3))
  out, _ = csp_darknet.ConvUnit(4, 6, 2).init_with_output(jax.random.key(0), x)
  assert out.shape == (1, 13, 19, 4)


def test_blocks_have_the_parameters_of_their_convolutions_and_norms():
  # Of 24 channels from 16: two halves, two bottlenecks, and the join.
  bottlenecks = 2 * (12 * 12 + 9 * 12 * 12 + 4 * 12)
  expected = 2 * (16 * 12 + 2 * 12) + bottlenecks + 24 * 24 + 2 * 24
  assert _count(csp_darknet.CrossStage(24, 2), 16) == expected
  assert _count(csp_darknet.SpatialPyramidPooling(24), 16) == 16 * 8 + 16 + 4 * 8 * 24 + 48


@pytest.mark.extended
def test_repeated_windows_are_larger_windows():
  x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 15, 15, 2)), jnp.float32)
  module = csp_darknet.SpatialPyramidPooling(4)
  variables = module.init(jax.random.key(0), x)
  _, state = module.apply(variables, x, capture_intermediates=True)
  reduced = np.asarray(state['intermediates']['reduce']['__call__'][0])
  params = variables['params']['join']['conv']
  join = csp_darknet.ConvUnit(4)
  windows = [reduced]
  padded = np.pad(reduced, ((0, 0), (6, 6), (6, 6), (0, 0)), constant_values=-np.inf)
  for margin in (2, 4, 6):
    around = np.lib.stride_tricks.sliding_window_view(padded, (2 * margin + 1,) * 2, axis=(1, 2))
    first = 6 - margin
    windows.append(around[:, first : first + 15, first : first + 15].max((-2, -1)))
  expected = join.apply(
    {
      'params': {'conv': params, 'norm': variables['params']['join']['norm']},
      'batch_stats': variables['batch_stats']['join'],
    },
    np.concatenate(windows, axis=-1),
  )
  np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-5)
